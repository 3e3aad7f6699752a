from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fcos.model.assign import StaticAssigner
from fcos.model.fcos import FCOS
from fcos.model.losses import FcosLoss

from .conftest import RANGES


def random_images(number: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8, generator=generator)


def test_pixels_are_normalised_by_hand(network: FCOS) -> None:
    images = torch.tensor([0, 100, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    normal = network.normalize(images, torch.tensor([[1, 1]]))
    expected = [(0 - 123.675) / 58.395, (100 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    assert normal.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_memory_order_does_not_change_normalisation(network: FCOS, dtype: torch.dtype) -> None:
    images = random_images(2, 4, 6).to(dtype)
    sizes = torch.tensor([[4, 6], [2, 3]])
    given = images.to(memory_format=torch.channels_last, copy=True)
    normal = network.normalize(given, sizes)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normal, network.normalize(images, sizes))
    assert torch.equal(given, images)  # what was given is not written over


def test_padding_is_zero_after_normalisation(network: FCOS) -> None:
    normal = network.normalize(random_images(2, 4, 6), torch.tensor([[4, 6], [2, 3]]))
    assert (normal[0] != 0).any(dim=0).all()
    assert (normal[1, :, :2, :3] != 0).any(dim=0).all()
    assert (normal[1, :, 2:] == 0).all()
    assert (normal[1, :, :, 3:] == 0).all()


def test_what_stands_in_the_padding_does_not_matter(network: FCOS) -> None:
    images, sizes = random_images(1, 64, 64), torch.tensor([[50, 40]])
    other = images.clone()
    other[:, :, 50:] = 0
    other[:, :, :, 40:] = 255
    with torch.no_grad():
        torch.testing.assert_close(network(images, sizes), network(other, sizes), rtol=0, atol=0)


def test_an_image_is_the_same_alone_and_in_a_batch(network: FCOS) -> None:
    images, sizes = random_images(2, 64, 96), torch.tensor([[64, 96], [40, 70]])
    with torch.no_grad():
        together = network(images, sizes)
        for i in range(2):
            alone = network(images[i : i + 1], sizes[i : i + 1])
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i], b[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size_hw", [(64, 96), (96, 32), (33, 47), (130, 65)])
def test_there_is_one_prediction_for_each_point_at_any_size(network: FCOS, size_hw: tuple[int, int]) -> None:
    with torch.no_grad():
        output = network(random_images(1, *size_hw), torch.tensor([size_hw]))
    num_points = len(network.grid(size_hw).points)
    assert output.logits.shape == (1, num_points, 3)
    assert output.distances.shape == (1, num_points, 4)
    assert output.quality is not None
    assert output.quality.shape == (1, num_points)
    assert network.num_classes == 3


def test_p6_and_p7_round_up(network: FCOS) -> None:
    assert network.grid((160, 224)).level_sizes == ((20, 28), (10, 14), (5, 7), (3, 4), (2, 2))
    with torch.no_grad():
        levels = network.pyramid(network.backbone(torch.zeros(1, 3, 160, 224)))
    assert tuple(tuple(level.shape[2:]) for level in levels) == network.grid((160, 224)).level_sizes


def test_memory_order_of_the_images_does_not_change_the_result(network: FCOS) -> None:
    images, sizes = random_images(2, 64, 96), torch.tensor([[64, 96], [40, 70]])
    with torch.no_grad():
        expected = network(images, sizes)
        network = network.to(memory_format=torch.channels_last)
        found = network(images.contiguous(memory_format=torch.channels_last), sizes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_training_and_evaluation_give_the_same_predictions(network: FCOS) -> None:
    images, sizes = random_images(1, 64, 64), torch.tensor([[64, 64]])
    with torch.no_grad():
        torch.testing.assert_close(network.train()(images, sizes), network.eval()(images, sizes))


def test_statistics_of_the_pixels_travel_with_the_weights(network: FCOS) -> None:
    state = network.state_dict()
    assert state["pixel_mean"].flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert state["pixel_std"].flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize("num_boxes", [0, 1])
def test_every_trained_parameter_gets_a_gradient(network: FCOS, num_boxes: int) -> None:
    images, sizes = random_images(1, 64, 64), torch.tensor([[64, 64]])
    grid = network.grid((64, 64))
    boxes = torch.tensor([[5.0, 5.0, 50.0, 45.0]])[:num_boxes]
    targets = StaticAssigner(RANGES, 1.5)(grid, [boxes], [torch.tensor([1])[:num_boxes]])
    losses = FcosLoss()(network.train()(images, sizes), grid, targets, targets.normalizers())
    torch.stack(list(losses.values())).sum().backward()
    trained = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in trained.values() if gradient is not None)
    assert network.head.logits.weight.grad is not None
    assert network.head.logits.weight.grad.abs().sum() > 0
