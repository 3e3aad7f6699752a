from __future__ import annotations

from dataclasses import replace

import torch

from fcos.data.batch import GroundTruth, Sample, collate, padded_size, split_by_size


def sample(height: int, width: int, num_boxes: int = 0, image_id: int = 1) -> Sample:
    truth = GroundTruth(torch.rand(num_boxes, 4), torch.zeros(num_boxes, dtype=torch.int64))
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    return Sample(image, truth, image_id, (2 * height, 2 * width), position=10 + image_id)


def test_padded_size_holds_every_image() -> None:
    assert padded_size([(33, 64), (64, 10)], 32) == (64, 64)
    assert padded_size([(65, 1)], 32) == (96, 32)


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


def test_samples_of_one_padded_size_go_together_and_large_ones_alone() -> None:
    sizes = [(20, 40), (33, 16), (32, 64), (100, 100), (64, 32), (97, 128)]
    samples = [replace(sample(*size), position=place) for place, size in enumerate(sizes)]

    groups = split_by_size(samples, multiple=32, max_pixels=64 * 64)

    assert [[sample.position for sample in group] for group in groups] == [[0, 2], [1, 4], [3], [5]]
