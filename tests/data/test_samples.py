from __future__ import annotations

import numpy as np
from PIL import Image

from fcos.data.samples import FOLDER, load_digits, photographs


def test_digits_are_all_of_the_test_set_of_optdigits() -> None:
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max(), int(images.sum(dtype=np.int64))) == (0, 16, 561718)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_photographs_open_and_every_file_of_others_is_credited() -> None:
    sizes = []
    for path in photographs():
        with Image.open(path) as image:
            sizes.append(image.convert("RGB").size)
    assert sizes == [(640, 427), (640, 427), (512, 600)]
    credits = (FOLDER / "README.txt").read_text()
    ours = {"__init__.py", "README.txt"}
    foreign = {path.name for path in FOLDER.iterdir() if path.is_file()} - ours
    assert foreign == {"digits.npz", "china.jpg", "flower.jpg"}
    assert all(f"{name}: " in credits for name in foreign)
