"""Handwritten digits and photographs for `fcos quickstart` and for checks of exported files.

They are not ours: README.txt beside them names authors and licenses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`(1797, 8, 8)` gray levels, 0 (paper) to 16 (ink), and `(1797,)` the digit each stands for."""
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def photographs() -> list[Path]:
    """JPEG files: a palace, flowers, and the portrait that comes with matplotlib."""
    from matplotlib import get_data_path

    portrait = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    return [FOLDER / "china.jpg", FOLDER / "flower.jpg", portrait]
