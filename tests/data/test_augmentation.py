from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from fcos.data.augmentation import change_color, random_color


@pytest.fixture
def noise() -> torch.Tensor:
    """Colors far enough from black and white that nothing is clipped, three bytes a pixel side by side."""
    pixels = np.random.default_rng(0).integers(90, 150, (40, 64, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("factors", [(1.2, 1.0, 1.0), (1.0, 0.8, 1.0), (1.0, 1.0, 1.3), (0.8, 1.2, 0.7)])
def test_colors_are_those_of_torchvision_but_for_its_roundings(
    noise: torch.Tensor, factors: tuple[float, float, float]
) -> None:
    brightness, contrast, saturation = factors
    theirs = F.adjust_brightness(
        F.adjust_contrast(F.adjust_saturation(noise, saturation), contrast), brightness
    )

    ours = change_color(noise, *factors)

    assert (ours.int() - theirs.int()).abs().max() <= 2
    assert not torch.equal(ours, noise)


def test_factors_of_one_change_nothing(noise: torch.Tensor) -> None:
    assert torch.equal(change_color(noise, 1.0, 1.0, 1.0), noise)


def test_worked_out_by_hand() -> None:
    # gray value 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2, which is also the mean
    plain = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    assert change_color(plain, 1.0, 1.0, 0.5)[:, 0, 0].tolist() == [162, 112, 87]  # half way to 124.2
    assert change_color(plain, 1.0, 0.5, 1.0)[:, 0, 0].tolist() == [162, 112, 87]
    assert change_color(plain, 1.5, 1.0, 1.0)[:, 0, 0].tolist() == [255, 150, 75]  # clipped


def test_part_of_the_images_stays_as_it_is(noise: torch.Tensor) -> None:
    torch.manual_seed(0)
    kept = [random_color(noise) is noise for _ in range(200)]
    assert 40 < sum(kept) < 80


def test_same_seed_gives_the_same_colors(noise: torch.Tensor) -> None:
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(random_color(noise))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
