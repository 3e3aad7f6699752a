from __future__ import annotations

from itertools import islice, zip_longest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fcos.data.sampler import ShardSampler, StreamSampler, epoch_order, stream_seed

ALIKE = torch.ones(50, dtype=torch.bool)
SHAPES = st.lists(st.booleans(), min_size=1, max_size=30).map(torch.tensor)


def take(sampler: StreamSampler, num_micro_batches: int) -> list[list[tuple[int, int]]]:
    return list(islice(sampler, num_micro_batches))


def slow_stream(is_wide: Tensor, batch_size: int, seed: int, num_positions: int) -> list[tuple[int, int]]:
    """The whole stream, one epoch after the other: (image index, position)."""
    images: list[int] = []
    while len(images) < num_positions:
        images += epoch_order(is_wide, batch_size, seed, len(images) // len(is_wide)).tolist()
    return [(image, position) for position, image in enumerate(images[:num_positions])]


@given(
    is_wide=SHAPES,
    share=st.integers(1, 6),
    world=st.integers(1, 3),
    start_step=st.integers(0, 5),
    data=st.data(),
)
def test_every_split_of_a_step_is_a_part_of_one_stream(
    is_wide: Tensor, share: int, world: int, start_step: int, data: st.DataObject
) -> None:
    micro_batch = data.draw(st.sampled_from([size for size in range(1, share + 1) if share % size == 0]))
    batch_size, num_steps = share * world, 3
    ranks = [
        take(
            StreamSampler(is_wide, batch_size, micro_batch, 7, rank, world, start_step),
            num_steps * share // micro_batch,
        )
        for rank in range(world)
    ]
    assert all(len(micro) == micro_batch for rank in ranks for micro in rank)
    flat = [[place for micro in rank for place in micro] for rank in ranks]
    steps = [place for step in range(num_steps) for rank in flat for place in rank[step * share :][:share]]
    end = (start_step + num_steps) * batch_size
    assert steps == slow_stream(is_wide, batch_size, 7, end)[start_step * batch_size :]


def test_order_of_a_small_stream_by_hand() -> None:
    first, second = (epoch_order(ALIKE[:3], 2, 0, epoch).tolist() for epoch in (0, 1))
    [step_0, step_1, step_2] = take(StreamSampler(ALIKE[:3], 2, 2, seed=0, rank=0, world=1), 3)
    assert step_0 == [(first[0], 0), (first[1], 1)]
    assert step_1 == [(first[2], 2), (second[0], 3)]  # the second epoch begins within a step
    assert step_2 == [(second[1], 4), (second[2], 5)]


@given(is_wide=SHAPES, batch_size=st.integers(1, 8), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_every_epoch_has_every_image_once(is_wide: Tensor, batch_size: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(is_wide, batch_size, seed, epoch).tolist()) == list(range(len(is_wide)))


def test_images_of_a_step_lie_or_stand_alike() -> None:
    is_wide = torch.arange(102) % 3 > 0
    steps = [
        [bool(is_wide[image]) for image, _ in step]
        for step in take(StreamSampler(is_wide, 8, 8, seed=0, rank=0, world=1), 102)  # 8 epochs
    ]

    mixed = [number for number, step in enumerate(steps) if len(set(step)) > 1]
    assert len(mixed) <= 2 * 8  # an epoch leaves less than a step of each
    kinds = [step[0] for number, step in enumerate(steps) if number not in mixed]
    assert 0.55 < sum(kinds) / len(kinds) < 0.8


def test_steps_of_wide_and_of_high_images_are_shuffled() -> None:
    is_wide = torch.arange(400) < 200
    for epoch in range(5):
        of_steps = is_wide[epoch_order(is_wide, 10, 0, epoch)].reshape(40, 10)
        assert (of_steps.all(dim=1) | (~of_steps).all(dim=1)).all()
        places = of_steps[:, 0].nonzero().flatten().float()
        assert len(places) == 20
        # 20 of 40 places at random: 19.5 +- 1.9 in the mean; 9.5 or 29.5 with one kind first
        assert 13 < places.mean() < 26


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(ALIKE, 4, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_batch_larger_than_the_data_goes_round_it() -> None:
    [step] = take(StreamSampler(ALIKE[:3], 7, 7, seed=1, rank=0, world=1), 1)
    assert sorted(image for image, _ in step[:3]) == sorted(image for image, _ in step[3:6]) == [0, 1, 2]
    assert [position for _, position in step] == list(range(7))


def test_seeds_of_places_differ() -> None:
    seeds = {stream_seed(seed, position) for seed in range(100) for position in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch.manual_seed takes


def test_order_of_a_seed_is_the_same_in_every_version() -> None:
    """A run that is resumed with a newer version would otherwise see some images twice and others never."""
    assert [stream_seed(*place) for place in ((0, 0), (1, 0), (0, 1), (3, 7))] == [
        2902805962516761537,
        4260358641028961620,
        2794019225575547101,
        5249974695936948002,
    ]
    is_wide = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    # Steps of 3: wide, high, wide, and one is left; its step takes two images of the second epoch.
    assert epoch_order(is_wide, 3, 0, 0).tolist() == [8, 9, 5, 4, 2, 7, 0, 6, 1, 3]
    assert epoch_order(is_wide, 3, 0, 1).tolist() == [4, 7, 6, 1, 9, 0, 5, 3, 8, 2]


def test_a_single_device_gets_all_batches() -> None:
    assert list(ShardSampler(3, 2)) == [[(0, 0), (1, 1)], [(2, 2)]]
    assert next(iter(StreamSampler(ALIKE[:2], 2, 2, seed=0, rank=0, world=1)))[0][1] == 0  # from the start


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shards_hold_every_image_once(world: int) -> None:
    shards = [ShardSampler(7, batch_size=2, rank=rank, world=world) for rank in range(world)]
    found = sorted(index for shard in shards for batch in shard for index, _ in batch)
    assert found == list(range(7))
    for shard in shards:
        assert len(list(shard)) == len(shard)
        assert all(1 <= len(batch) <= 2 for batch in shard)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_images_of_a_batch_are_of_one_kind_and_batches_the_same_on_any_number_of_devices(world: int) -> None:
    kinds = ["wide", "high", "wide", "wide", "high", None, "wide"]
    shards = [list(ShardSampler(7, 3, rank, world, kinds=kinds)) for rank in range(world)]
    batches = [batch for dealt in zip_longest(*shards, fillvalue=[]) for batch in dealt if batch]
    assert [[index for index, _ in batch] for batch in batches] == [[0, 2, 3], [1, 4], [5], [6]]
