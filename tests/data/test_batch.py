from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos.data.annotations import Annotations, Record
from fcos.data.augmentation import Augmentation, build_policy
from fcos.data.batch import (
    EvalDataset,
    GroundTruth,
    Sample,
    TrainDataset,
    collate,
    read_sample,
)
from fcos.data.transforms import EvalTransform, TrainTransform


def sample(height: int, width: int, num_boxes: int = 0, image_id: int = 1) -> Sample:
    truth = GroundTruth(torch.rand(num_boxes, 4), torch.zeros(num_boxes, dtype=torch.int64))
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    return Sample(image, truth, image_id, (2 * height, 2 * width), position=10 + image_id)


def test_images_are_padded_below_and_right_with_zeros() -> None:
    batch = collate([sample(20, 40, image_id=4), sample(33, 16, num_boxes=2, image_id=5)], multiple=32)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.sizes_hw.tolist() == [[20, 40], [33, 16]]
    for image, (height, width) in zip(batch.images, batch.sizes_hw.tolist(), strict=True):
        assert (image[:, :height, :width] == 200).all()
        assert int((image != 0).sum()) == 3 * height * width


def test_what_belongs_to_an_image_stays_with_it() -> None:
    samples = [sample(20, 40, image_id=4), sample(33, 16, num_boxes=2, image_id=5)]
    batch = collate(samples, multiple=32)
    assert len(batch) == 2
    assert batch.image_ids == (4, 5)
    assert batch.positions == (14, 15)
    assert batch.original_sizes_hw.tolist() == [[40, 80], [66, 32]]
    assert [len(truth.labels) for truth in batch.ground_truth] == [0, 2]
    assert batch.ground_truth[1].boxes_xyxy is samples[1].ground_truth.boxes_xyxy


def test_batch_moves_as_a_whole() -> None:
    batch = collate([sample(20, 40, num_boxes=1)], multiple=32).to(torch.device("meta"))
    tensors = [batch.images, batch.sizes_hw, batch.original_sizes_hw, batch.ground_truth[0].boxes_xyxy]
    assert all(tensor.is_meta for tensor in [*tensors, batch.ground_truth[0].labels])
    assert batch.image_ids == (1,)


def test_values_of_a_pixel_lie_side_by_side() -> None:
    batch = collate([sample(20, 40), sample(33, 16)], multiple=32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.padded_to((96, 64)).images.is_contiguous(memory_format=torch.channels_last)
    assert batch.to(torch.device("cpu"), torch.contiguous_format).images.is_contiguous()


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    """A noisy image with a crowd region and a box that sticks out; and an empty gray one."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.new("L", (30, 50), 128).save(tmp_path / "gray.png")
    boxes = [[5, 5, 30, 30], [0, 0, 60, 40], [40, -1, 61, 41]]
    records = [
        Record.make(tmp_path / "noise.png", boxes, [0, 1, 1], 11, is_crowd=[False, True, False]),
        Record.make(tmp_path / "gray.png", [], [], 12),
    ]
    return Annotations.from_records(records, ["cat", "dog"], source=tmp_path, format="list")


def random_transform() -> TrainTransform:
    return TrainTransform(EvalTransform(None, 64), scale_min=0.5, augment=build_policy("strong"))


def test_crowds_are_no_targets_and_boxes_end_at_the_border(annotations: Annotations) -> None:
    image, truth = read_sample(annotations[0])
    assert image.pixels.shape == (3, 40, 60)
    assert truth.boxes_xyxy.tolist() == [[5, 5, 30, 30], [40, 0, 60, 40]]
    assert truth.labels.tolist() == [0, 1]


def test_same_place_in_the_stream_gives_the_same_sample(annotations: Annotations) -> None:
    dataset = TrainDataset(annotations, random_transform(), seed=3, batch_size=4)
    first = dataset[0, 17]
    torch.rand(5)  # the state of the world does not matter
    again = TrainDataset(annotations, random_transform(), seed=3, batch_size=4)[0, 17]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.ground_truth.boxes_xyxy, again.ground_truth.boxes_xyxy)
    assert first.position == 17
    assert first.image_id == 11


def test_other_place_or_seed_gives_another_sample(annotations: Annotations) -> None:
    samples = [
        TrainDataset(annotations, random_transform(), seed=seed, batch_size=4)[0, p]
        for seed in (0, 1)
        for p in (0, 1)
    ]
    pixels = {(tuple(sample.image.shape), sample.image.float().mean().item()) for sample in samples}
    assert len(pixels) == 4


def test_sample_leaves_the_random_state_as_it_was(annotations: Annotations) -> None:
    state = torch.get_rng_state()
    TrainDataset(annotations, random_transform(), seed=0, batch_size=4)[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_image_without_boxes_is_a_sample(annotations: Annotations) -> None:
    sample = TrainDataset(annotations, random_transform(), seed=0, batch_size=4)[1, 4]
    assert sample.ground_truth.boxes_xyxy.shape == (0, 4)
    assert sample.ground_truth.labels.shape == (0,)
    assert sample.original_size_hw == (50, 30)


def test_evaluation_only_resizes(annotations: Annotations) -> None:
    dataset = EvalDataset(annotations, EvalTransform(None, 120))
    assert len(dataset) == 2
    sample = dataset[0, 0]
    assert sample.image.shape == (3, 80, 120)
    assert sample.original_size_hw == (40, 60)
    assert len(sample.ground_truth.labels) == 0


def test_images_of_a_step_are_turned_alike(annotations: Annotations) -> None:
    transform = TrainTransform(EvalTransform(None, 64), augment=Augmentation(quarter_turns=True))
    dataset = TrainDataset(annotations, transform, seed=0, batch_size=4)

    upright = [[dataset[0, 4 * step + k].image.shape[1] > 43 for k in range(4)] for step in range(12)]

    assert all(len(set(step)) == 1 for step in upright)
    assert 2 <= sum(step[0] for step in upright) <= 10


def test_sample_of_a_reduced_image_is_nearly_that_of_the_whole(tmp_path: Path) -> None:
    y, x = np.mgrid[:301, :403]
    waves = np.stack([128 + 100 * np.sin(x / 29 + k) * np.cos(y / 31 - k) for k in range(3)], axis=2)
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    record = Record.make(tmp_path / "a.jpg", [[40, 60, 200, 300], [300, 20, 403, 100]], [0, 1], 5)
    annotations = Annotations.from_records([record], ["cat", "dog"], source=tmp_path, format="list")
    whole, reduced = (
        TrainDataset(
            annotations, TrainTransform(EvalTransform(None, 100), reduced_decode=on), seed=0, batch_size=1
        )[0, 3]
        for on in (False, True)
    )
    assert reduced.image.shape == whole.image.shape == (3, 75, 100)
    # 403 pixels become 202, so the right side is a quarter of a pixel farther to the left
    assert 0 < (reduced.image.float() - whole.image.float()).abs().mean() < 2
    torch.testing.assert_close(
        reduced.ground_truth.boxes_xyxy, whole.ground_truth.boxes_xyxy, rtol=0, atol=0.5
    )
    assert reduced.original_size_hw == whole.original_size_hw == (301, 403)
