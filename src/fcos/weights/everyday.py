"""The everyday detector: weights that come with the package, for 20 kinds of everyday objects.

It works on the user's own images at once, and is a better start for training than ImageNet weights.
docs/everyday.md is its model card; `benchmarks/everyday.py` trains it.
"""

from __future__ import annotations

from pathlib import Path

EVERYDAY = "everyday"
EVERYDAY_FILE = Path(__file__).with_name("everyday.safetensors")
