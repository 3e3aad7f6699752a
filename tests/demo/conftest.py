"""The demo page as a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures and a text."""
    folder = tmp_path_factory.mktemp("examples")
    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse.repeat(10, axis=0).repeat(10, axis=1))
    picture.save(folder / "a.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "ünï.jpg")
    (folder / "secret.txt").write_text("nobody may read this")
    return folder


@pytest.fixture(scope="session")
def address(model_file: Path, examples: Path) -> Iterator[str]:
    """Where a demo of a tiny model answers."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fcos", "demo", str(model_file), "--examples", str(examples)),
            *("--port", "0", "--no-open", "--device", "cpu"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line
    yield line.split()[0]
    process.terminate()
    process.wait(timeout=30)
    process.stdout.close()
