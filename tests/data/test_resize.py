from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos.config.conventions import SizeRule
from fcos.data.resize import resize, resized_size


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("detectron2_r50", "round"),
        ("mmdet_r50_caffe", "round"),
        ("official_r50_imprv", "truncate"),
        ("torchvision_r50", "floor"),
    ],
)
def test_sizes_are_those_of_the_code_bases(vectors: Callable[[str], Path], name: str, rule: SizeRule) -> None:
    table = json.loads((vectors(name) / "meta.json").read_text())["resize_table"]
    assert len(table) == 18
    for words, (large, small) in table.items():
        height, width = map(int, words.split("x"))
        assert resized_size((height, width), 800, 1333, rule) == tuple(large), words
        assert resized_size((height, width), 160, 256, rule) == tuple(small), words


def test_the_three_rules_by_hand() -> None:
    # 427 x 640 to 160: 640 * 160 / 427 = 239.81
    assert resized_size((427, 640), 160, 256, "round") == (160, 240)
    assert resized_size((427, 640), 160, 256, "truncate") == (160, 239)
    assert resized_size((427, 640), 160, 256, "floor") == (160, 239)
    # 1080 x 1920: the longer side decides; 1080 * 1333 / 1920 = 749.81
    assert resized_size((1080, 1920), 800, 1333, "round") == (750, 1333)
    assert resized_size((1080, 1920), 800, 1333, "truncate") == (750, 1333)
    assert resized_size((1080, 1920), 800, 1333, "floor") == (749, 1333)
    assert resized_size((1080, 1920), None, 960, "truncate") == (540, 960)


def test_pillow_is_pillow_and_ours_is_within_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(pixels).resize((50, 37), Image.Resampling.BILINEAR))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert np.array_equal(resize(image, (37, 50), "pillow").permute(1, 2, 0).numpy(), theirs)
    ours = resize(image, (37, 50)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_opencv_and_float_do_not_smooth() -> None:
    stripes = torch.zeros(3, 8, 8, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    # every new pixel lies midway between two old ones: 0 and 200
    assert resize(stripes, (4, 4), "opencv").unique().tolist() == [100]
    # a third of the size: every new pixel lies on an old one, the others do not count
    wide = torch.zeros(3, 9, 9, dtype=torch.uint8)
    wide[:, :, 1::3] = 200
    assert resize(wide, (3, 3), "opencv").unique().tolist() == [200]
    floats = resize(wide, (3, 4), "float")
    assert floats.dtype == torch.float32
    # the second of four new pixels lies at 1.5 * 9 / 4 - 0.5 = 2.875: 7/8 of the way to a dark one
    assert floats[0, 0, 1].item() == pytest.approx(0.0)
    # the first at 0.5 * 9 / 4 - 0.5 = 0.625: 5/8 of the way to a bright one, not rounded
    assert floats[0, 0, 0].item() == pytest.approx(125.0)
    assert resize(wide, (9, 9), "float") is wide
