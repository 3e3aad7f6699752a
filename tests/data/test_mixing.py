from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fcos.data.annotations import Annotations, Record
from fcos.data.batch import TrainDataset
from fcos.data.mixing import GRAY, Mixing, mixup, mosaic, paste_objects
from fcos.data.transforms import Augmented, EvalTransform, TrainTransform


def plain(value: int, size_hw: tuple[int, int], boxes: list[list[float]], label: int = 0) -> Augmented:
    """An image of one gray value, with boxes."""
    image = torch.full((3, *size_hw), value, dtype=torch.uint8)
    return (
        image,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.full((len(boxes),), label, dtype=torch.int64),
    )


def fix_random(monkeypatch: pytest.MonkeyPatch, *numbers: float) -> None:
    """Let torch.rand give these numbers, the last one for ever."""
    left = list(numbers)

    def rand(size: object = ()) -> torch.Tensor:
        drawn = [
            left.pop(0) if len(left) > 1 else left[0] for _ in range(size if isinstance(size, int) else 1)
        ]
        return torch.tensor(drawn if isinstance(size, int) else drawn[0])

    monkeypatch.setattr(torch, "rand", rand)


def test_four_images_meet_at_a_point_each_with_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    # the point is (0.25 + 0.5 x 0.5) of each side: row 20, column 40; factors are all 1
    fix_random(monkeypatch, 0.5, 0.5, 1.0)
    parts = [
        plain(10 * k, (40, 80), [[0, 0, 80, 40], [30, 15, 50, 25], [40, 20, 80, 40]], k) for k in range(4)
    ]

    image, boxes, labels = mosaic(parts)

    assert image.shape == (3, 40, 80)
    assert [int(image[0, y, x]) for y in (0, 19, 20, 39) for x in (0, 39, 40, 79)] == [
        *[0, 0, 10, 10] * 2,
        *[20, 20, 30, 30] * 2,
    ]
    # Of each image the quarter at the point is seen: image 0 (top left) shows its own bottom right quarter,
    # where the third box lies whole and a quarter of the first two, which is not more than a quarter.
    top_left = boxes[labels == 0]
    assert top_left.tolist() == [[0, 0, 40, 20]]
    assert boxes[labels == 3].tolist() == []  # bottom right shows the top left quarter


def test_images_of_a_mosaic_are_shrunk_about_the_point(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_random(monkeypatch, 0.5, 0.5, 0.0)  # factors of a half: each quarter shows a whole image
    parts = [plain(10 * k, (40, 80), [[20, 10, 60, 30]], k) for k in range(4)]

    image, boxes, labels = mosaic(parts)

    assert int(image[0, 0, 0]) == 0
    assert int(image[0, 39, 79]) == 30
    assert boxes.tolist() == [[10, 5, 30, 15], [50, 5, 70, 15], [10, 25, 30, 35], [50, 25, 70, 35]]
    assert labels.tolist() == [0, 1, 2, 3]


def test_a_mosaic_is_gray_where_no_image_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_random(monkeypatch, 0.5, 0.5, 1.0)
    small = plain(200, (4, 4), [[0, 0, 4, 4]])
    image, boxes, _ = mosaic([plain(9, (40, 80), []), small, small, small])
    assert (image == 200).sum() == 3 * 3 * 16
    assert (image == 9).sum() == 3 * 20 * 40
    assert (image == GRAY).sum() == 3 * (40 * 80 - 20 * 40 - 3 * 16)
    assert boxes.tolist() == [[40, 16, 44, 20], [36, 20, 40, 24], [40, 20, 44, 24]]


def test_mixup_is_the_mean_of_two_images_with_the_boxes_of_both() -> None:
    first = plain(100, (20, 30), [[1, 2, 11, 12]], 0)
    second = plain(201, (30, 20), [[0, 0, 10, 10], [5, 16, 15, 30]], 1)

    image, boxes, labels = mixup(first, second)

    assert image.shape == (3, 20, 30)
    assert (image[:, :, :20] == 150).all()  # (100 + 201) // 2
    assert (image[:, :, 20:] == (100 + GRAY) // 2).all()
    # 4 of the 14 rows of the last box are seen: more than a quarter
    assert boxes.tolist() == [[1, 2, 11, 12], [0, 0, 10, 10], [5, 16, 15, 20]]
    assert labels.tolist() == [0, 1, 1]


def test_an_object_is_pasted_where_it_covers_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_random(monkeypatch, 0.0, 0.999, 0.0)  # pasted, as far down and left as it can go
    first = plain(50, (20, 30), [[10, 0, 20, 10]], 0)
    second = plain(90, (16, 16), [[2, 3, 8, 7]], 1)

    image, boxes, labels = paste_objects(first, second)

    assert boxes.tolist() == [[10, 0, 20, 10], [0, 16, 6, 20]]
    assert labels.tolist() == [0, 1]
    assert (image[:, 16:, :6] == 90).all()
    assert (image == 90).sum() == 3 * 24
    assert (first[0] == 50).all()  # the image given stays as it was


@pytest.mark.parametrize(("left", "pasted"), [(6, True), (7, False), (20, True)])
def test_an_object_may_cover_three_tenths_of_a_box(
    monkeypatch: pytest.MonkeyPatch, left: int, pasted: bool
) -> None:
    fix_random(monkeypatch, 0.0, 0.0, (left + 0.5) / 21)  # 21 places for an object 10 wide, the last at 20
    first = plain(50, (10, 30), [[13, 0, 23, 10]], 0)  # from 6 on, 3 of its 10 columns are covered
    _, boxes, _ = paste_objects(first, plain(90, (10, 30), [[0, 0, 10, 10]], 1))
    assert boxes[1:].tolist() == ([[left, 0, left + 10, 10]] if pasted else [])


def test_half_of_the_objects_are_pasted_and_none_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_random(monkeypatch, 0.5)
    _, boxes, _ = paste_objects(plain(0, (20, 20), []), plain(1, (20, 20), [[0, 0, 9, 9]]))
    assert len(boxes) == 0
    fix_random(monkeypatch, 0.0)
    _, boxes, _ = paste_objects(plain(0, (20, 20), []), plain(1, (40, 40), [[0, 0, 21, 9]]))
    assert len(boxes) == 0


def test_mixing_ends_at_its_position(monkeypatch: pytest.MonkeyPatch) -> None:
    mixing = Mixing(mixup=1.0, until=8)
    first, second = plain(0, (4, 4), []), plain(100, (4, 4), [])
    assert int(mixing(first, 7, lambda: second)[0][0, 0, 0]) == 50
    assert mixing(first, 8, lambda: second) is first


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    """Eight gray images of values 10, 20, ... with one box each."""
    records = []
    for k in range(8):
        Image.new("L", (64, 32), 10 * (k + 1)).save(tmp_path / f"{k}.png")
        records.append(Record.make(tmp_path / f"{k}.png", [[8, 8, 40, 24]], [k % 2], k))
    return Annotations.from_records(records, ["cat", "dog"], source=tmp_path, format="list")


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_paste"])
def test_the_same_position_gives_the_same_mixture(annotations: Annotations, kind: str) -> None:
    def dataset() -> TrainDataset:
        mixing = Mixing(**{kind: 1.0}, until=100)
        return TrainDataset(
            annotations, TrainTransform(EvalTransform(None, 64), horizontal_flip=False), 0, 4, mixing
        )

    samples = [dataset()[k % 8, k] for k in range(16)]
    again = [dataset()[k % 8, k] for k in reversed(range(16))][::-1]
    for one, other in zip(samples, again, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.ground_truth.boxes_xyxy, other.ground_truth.boxes_xyxy)
        assert torch.equal(one.ground_truth.labels, other.ground_truth.labels)
        assert one.image.shape == (3, 32, 64)
    means = {round(float(sample.image.float().mean()), 3) for sample in samples}
    assert len(means) > 8  # the eight images alone have eight


def test_the_share_of_mixed_images_is_as_asked(annotations: Annotations) -> None:
    mixing = Mixing(mosaic=0.5, until=1000)
    dataset = TrainDataset(
        annotations, TrainTransform(EvalTransform(None, 64), horizontal_flip=False), 0, 4, mixing
    )
    mixed = sum(len(dataset[0, position].image.unique()) > 1 for position in range(200))
    assert 75 <= mixed <= 125  # binomial: 100 +- 7


def test_boxes_too_small_to_learn_from_are_left_out_of_a_mosaic_too(annotations: Annotations) -> None:
    transform = TrainTransform(EvalTransform(None, 64), min_area=300.0)
    dataset = TrainDataset(annotations, transform, 0, 4, Mixing(mosaic=1.0, until=100, min_area=300.0))
    areas = [
        (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
        for position in range(40)
        for boxes in dataset[0, position].ground_truth.boxes_xyxy.tolist()
    ]
    assert areas
    assert min(areas) >= 300
