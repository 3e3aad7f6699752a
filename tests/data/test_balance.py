from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fcos.data.annotations import Annotations, Record
from fcos.data.balance import epoch_length, images_per_class, repeat_factors, repeated
from fcos.data.loader import epoch_order, training_stream

WIDE = torch.ones(100, dtype=torch.bool)


def data_of(labels: list[list[int]], crowd: int = -1) -> Annotations:
    """Images with boxes of these labels; those of the label `crowd` are crowd regions."""
    records = [
        Record.make(
            Path(f"{number}.jpg"),
            [[0, 0, 9, 9]] * len(of_image),
            of_image,
            number + 1,
            is_crowd=[label == crowd for label in of_image],
        )
        for number, of_image in enumerate(labels)
    ]
    return Annotations.from_records(records, ["cat", "dog", "bird"], source=Path("list"), format="list")


def test_images_of_a_class_are_counted_once_and_crowds_never() -> None:
    assert images_per_class(data_of([[0, 0, 1], [0], [], [2, 0]])).tolist() == [3, 1, 1]
    assert images_per_class(data_of([[0, 0, 1], [0], [], [2, 0]], crowd=2)).tolist() == [3, 1, 0]


def test_factors_by_hand() -> None:
    # cat in 90 of 100 images, dog in 9, bird in 1; t = 0.36: factors 1, sqrt(0.36 / 0.09) = 2, sqrt(36) = 6
    labels = [[0]] * 90 + [[1]] * 8 + [[0, 1, 2], []]
    factors = repeat_factors(data_of(labels), 0.36)
    assert factors is not None
    assert factors.numpy() == pytest.approx(np.array([1.0] * 90 + [2.0] * 8 + [6.0, 1.0]))
    assert epoch_length(factors) == 90 + 16 + 6 + 1


def test_factors_that_sum_to_a_fraction_are_scaled_up() -> None:
    # dog in 1 of 4 images, t = 0.5: the factors 1, 1, 1 and sqrt(2) sum to 4.41
    factors = repeat_factors(data_of([[0], [0], [0], [1]]), 0.5)
    assert factors is not None
    assert epoch_length(factors) == 5
    assert factors.numpy() == pytest.approx(np.array([1, 1, 1, 2**0.5]) * 5 / (3 + 2**0.5))


@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_nothing_is_repeated_where_every_class_is_frequent(threshold: float) -> None:
    assert repeat_factors(data_of([[0], [1], [2], [0]]), threshold) is None


def test_every_epoch_has_one_length_and_on_average_the_factors() -> None:
    factors = torch.tensor([1.0, 1.5, 1.0, 2.25, 3.25] * 20, dtype=torch.float64)
    counts = torch.zeros(100)
    for epoch in range(200):
        random = torch.Generator().manual_seed(epoch)
        images = repeated(torch.randperm(100, generator=random), factors, random)
        of_epoch = images.bincount(minlength=100)
        assert len(images) == 180
        assert (of_epoch >= factors.floor()).all()
        assert (of_epoch <= factors.ceil()).all()
        counts += of_epoch
    # 200 times a coin has a standard deviation of at most 0.035
    assert (counts / 200 - factors).abs().max() < 0.15


def test_the_stream_with_repeats_is_one_however_it_is_split_and_where_it_starts() -> None:
    factors = torch.tensor([1.0, 2.5] * 50, dtype=torch.float64)  # 175 places an epoch
    images: list[int] = []
    for epoch in range(3):
        images += epoch_order(WIDE, 6, 7, epoch, factors).tolist()
    assert len(images) == 3 * 175
    ranks = [
        list(islice(training_stream(WIDE, 6, 1, 7, rank, 2, start_step=20, factors=factors), 3 * 30))
        for rank in range(2)
    ]
    places = sorted((place for rank in ranks for [place] in rank), key=lambda place: place[1])
    assert places == [(images[position], position) for position in range(6 * 20, 6 * 50)]


def test_repeats_are_spread_over_the_epoch() -> None:
    factors = torch.ones(100, dtype=torch.float64)
    factors[3] = 20
    places = (epoch_order(WIDE, 1, 0, 0, factors) == 3).nonzero().flatten().float()
    assert len(places) == 20
    assert 35 < places.mean() < 84  # 59.5 +- 7.0 of 119 places
    assert places.diff().max() > 1


def test_order_with_repeats_is_the_same_in_every_version() -> None:
    factors = torch.tensor([1.0, 1.5, 2.5], dtype=torch.float64)
    assert epoch_order(WIDE[:3], 2, 0, 0, factors).tolist() == [2, 0, 2, 1, 1]
