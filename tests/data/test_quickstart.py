import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos.config import load_config
from fcos.data import quickstart
from fcos.data.formats import read_annotations
from fcos.data.names import read_names
from fcos.data.quickstart import CLASS_NAMES, digit_cover, draw_image, load_material, make_digits
from fcos.errors import DatasetError, OutputError


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_makes_the_same_files_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_digits(tmp_path / name, num_train=3, num_eval=2, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["train.txt"] != files(tmp_path / "c")["train.txt"]


def test_a_longer_data_set_begins_with_the_images_of_a_shorter_one(tmp_path: Path) -> None:
    make_digits(tmp_path / "short", num_train=2, num_eval=1)
    make_digits(tmp_path / "long", num_train=4, num_eval=1)
    short, long = files(tmp_path / "short"), files(tmp_path / "long")
    assert long["images/train/0002.jpg"] == short["images/train/0002.jpg"]
    assert long["train.txt"].startswith(short["train.txt"])


def test_making_a_shorter_data_set_again_leaves_no_old_images(tmp_path: Path) -> None:
    make_digits(tmp_path, num_train=4, num_eval=2)
    make_digits(tmp_path, num_train=2, num_eval=1)
    assert sorted(path.name for path in (tmp_path / "images" / "train").iterdir()) == ["0001.jpg", "0002.jpg"]


def test_a_folder_with_other_things_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty, and is not a quickstart data set") as error:
        make_digits(tmp_path, num_train=1, num_eval=1)
    assert "--out FOLDER" in error.value.fix
    assert files(tmp_path) == {"names.txt": b"mine"}


def test_the_lists_read_back_as_they_were_drawn(tmp_path: Path) -> None:
    make_digits(tmp_path, num_train=5, num_eval=1)
    names, had_background = read_names(tmp_path / "names.txt")
    assert (names, had_background) == (CLASS_NAMES, True)
    annotations = read_annotations(tmp_path / "train.txt", root=tmp_path / "images" / "train", names=names)
    assert annotations.format == "list"
    for number, record in enumerate(annotations, start=1):
        drawn, digits = draw_image(load_material("train"), np.random.default_rng((0, 0, number)))
        np.testing.assert_array_equal(
            record.boxes_xyxy, np.reshape([digit.box_xyxy for digit in digits], (-1, 4))
        )
        assert record.labels.tolist() == [digit.label for digit in digits]
        with Image.open(record.path) as image:
            assert np.abs(np.asarray(image, float) - drawn).mean() < 6  # JPEG


def test_train_json_is_a_config_that_stays_right_when_the_folder_moves(tmp_path: Path) -> None:
    make_digits(tmp_path / "here", num_train=1, num_eval=1, seed=7)
    moved = (tmp_path / "here").rename(tmp_path / "there")
    config = load_config(moved / "train.json")
    assert (config.list_train, config.root_eval) == (str(moved / "train.txt"), str(moved / "images" / "eval"))
    assert (config.seed, config.classes, config.horizontal_flip) == (7, 10, False)
    assert "here" not in json.dumps(json.loads((moved / "train.json").read_text()))


def test_training_and_evaluation_share_no_digit() -> None:
    train, held_out = (
        {digit.tobytes() for digit in load_material(split).digits} for split in ("train", "eval")
    )
    assert len(train) + len(held_out) == 1797
    assert not train & held_out


def test_training_and_evaluation_share_no_pixel_of_a_photograph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Photographs whose pixels hold their own column: the parts must not have a column in common.
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (50, 200, 3))
    Image.fromarray(np.ascontiguousarray(columns)).save(tmp_path / "columns.png")
    monkeypatch.setattr(quickstart, "photographs", lambda: [tmp_path / "columns.png"])
    load_material.cache_clear()
    try:
        train, held_out = (
            set(np.unique(np.asarray(load_material(split).photos[0]))) for split in ("train", "eval")
        )
    finally:
        load_material.cache_clear()
    assert min(train) == 0
    assert max(train) < min(held_out)
    assert len(train) > 100
    assert len(held_out) > 60


def test_each_box_holds_the_pixels_that_change_when_its_digit_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow and obvious: draw with black ink on white and once more without one digit, then compare."""
    white = np.full(3, 255, np.float32)
    monkeypatch.setattr(
        quickstart, "draw_background", lambda photo, size_hw, rng: np.full((*size_hw, 3), 255, np.float32)
    )
    num_hidden = 0
    for number in range(12):
        image, digits = draw_image(load_material("eval"), np.random.default_rng(number))
        height, width, _ = image.shape
        for left_out, digit in enumerate(digits):
            # How much of each pixel shows this digit: its cover, and every later digit takes its share.
            share = np.zeros((height, width))
            for place, other in enumerate(digits[left_out:]):
                y, x = other.top_left
                for row in range(other.cover.shape[0]):
                    for column in range(other.cover.shape[1]):
                        cover = other.cover[row, column]
                        share[y + row, x + column] = (
                            cover if place == 0 else share[y + row, x + column] * (1 - cover)
                        )
            ys, xs = np.nonzero(share >= 0.5 - 1e-6)
            assert digit.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            num_hidden += bool(share.sum() < 0.99 * digit.cover.sum())
            x1, y1, x2, y2 = digit.box_xyxy
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
        if len(digits) == 1:  # then the image itself shows the share
            drawn = np.abs(image - white).max(axis=2) >= np.abs(digits[0].color - white).max() / 2
            ys, xs = np.nonzero(drawn)
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            np.testing.assert_allclose(digits[0].box_xyxy, box, atol=1)
    assert num_hidden > 0


def test_images_vary_as_promised() -> None:
    drawn = [draw_image(load_material("train"), np.random.default_rng((0, 0, n))) for n in range(200)]
    digits = [digit for _, on_image in drawn for digit in on_image]
    counts = [len(on_image) for _, on_image in drawn]
    assert 2 <= counts.count(0) <= 25
    assert max(counts) <= 8
    assert {digit.label for digit in digits} == set(range(10))
    heights = [digit.box_xyxy[3] - digit.box_xyxy[1] for digit in digits]
    assert min(heights) < 32
    assert max(heights) > 90
    hidden = [1 - digit.visible.sum() / digit.cover.sum() for digit in digits]
    assert 0.1 < max(hidden) <= 0.3 + 1e-5
    assert sum(share > 0.01 for share in hidden) > 20


def test_every_digit_stands_out_from_what_is_behind_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        low, high = np.sort(rng.uniform(0, 255, 2))
        behind = rng.uniform(low, high, (20, 20, 1)).repeat(3, axis=2).astype(np.float32)
        color = quickstart.readable_color(behind, rng)
        if color is None:
            assert high - low > 120  # neither a darker nor a lighter ink has room
            continue
        contrast = np.abs(quickstart.luminance(color) - quickstart.luminance(behind))
        assert np.quantile(contrast, 0.06) > 40


def test_a_turned_digit_has_the_ink_of_the_upright_one() -> None:
    digit = np.zeros((8, 8), np.float32)
    digit[1:7, 3:5] = 1  # a bar, 2 cells by 6
    upright = digit_cover(digit, 80.0, 0.0, 0.5)
    turned = digit_cover(digit, 80.0, 30.0, 0.5)
    assert upright.shape[0] == pytest.approx(60, abs=3)
    assert upright.shape[1] == pytest.approx(20, abs=3)
    assert turned.sum() == pytest.approx(upright.sum(), rel=0.03)
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    assert turned.shape[0] == pytest.approx(60 * cos + 20 * sin, abs=6)
    # Counter-clockwise: the upper end leans to the left.
    assert turned[: len(turned) // 2, : turned.shape[1] // 2].sum() > turned.sum() / 3


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        make_digits(tmp_path / "file" / "digits", num_train=1, num_eval=1)
