from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from itertools import islice, zip_longest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.data.augmentation import build_policy
from fcos.data.batch import Batch, TrainDataset
from fcos.data.loader import (
    Places,
    build_eval_loader,
    build_loader,
    epoch_order,
    shard,
    stream_seed,
    training_stream,
)
from fcos.data.transforms import EvalTransform, TrainTransform

ALIKE = torch.ones(50, dtype=torch.bool)


SHAPES = st.lists(st.booleans(), min_size=1, max_size=30).map(torch.tensor)


def take(stream: Iterator[Places], num_micro_batches: int) -> list[Places]:
    return list(islice(stream, num_micro_batches))


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
            training_stream(is_wide, batch_size, micro_batch, 7, rank, world, start_step),
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
    [step_0, step_1, step_2] = take(training_stream(ALIKE[:3], 2, 2, seed=0, rank=0, world=1), 3)
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
        for step in take(training_stream(is_wide, 8, 8, seed=0, rank=0, world=1), 102)  # 8 epochs
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
    [step] = take(training_stream(ALIKE[:3], 7, 7, seed=1, rank=0, world=1), 1)
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
    assert shard([[0, 1, 2]], 2) == [[(0, 0), (1, 1)], [(2, 2)]]
    assert next(training_stream(ALIKE[:2], 2, 2, seed=0, rank=0, world=1))[0][1] == 0  # from the start


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shards_hold_every_image_once(world: int) -> None:
    shards = [shard([list(range(7))], batch_size=2, rank=rank, world=world) for rank in range(world)]
    batches = [batch for of_rank in shards for batch in of_rank]
    assert sorted(index for batch in batches for index, _ in batch) == list(range(7))
    assert all(1 <= len(batch) <= 2 for batch in batches)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_images_of_a_batch_are_of_one_group_and_batches_the_same_on_any_number_of_devices(world: int) -> None:
    groups = [[0, 2, 3, 6], [1, 4], [5]]
    shards = [shard(groups, 3, rank, world) for rank in range(world)]
    batches = [batch for dealt in zip_longest(*shards, fillvalue=[]) for batch in dealt if batch]
    assert [[index for index, _ in batch] for batch in batches] == [[0, 2, 3], [1, 4], [5], [6]]


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """Five noisy images of different sizes, one box in each."""
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    records = []
    for number in range(5):
        pixels = random.integers(0, 255, (30 + 5 * number, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        size_hw = (pixels.shape[0], pixels.shape[1])
        boxes = [[5, 5, 25, 25]]
        records.append(Record.make(folder / f"{number}.png", boxes, [0], number + 1, size_hw=size_hw))
    return Annotations.from_records(records, ["cat"], source=folder, format="list")


def train_batches(annotations: Annotations, num_workers: int, seed: int = 0, count: int = 4) -> list[Batch]:
    transform = TrainTransform(EvalTransform(None, 64), scale_min=0.5, augment=build_policy("strong"))
    stream = training_stream(torch.ones(len(annotations), dtype=torch.bool), 4, 2, seed, rank=0, world=1)
    loader = build_loader(TrainDataset(annotations, transform, seed, 4), stream, num_workers)
    return list(islice(loader, count))


def is_same(left: Batch, right: Batch) -> bool:
    return (
        torch.equal(left.images, right.images)
        and left.positions == right.positions
        and all(
            torch.equal(a.boxes_xyxy, b.boxes_xyxy)
            for a, b in zip(left.ground_truth, right.ground_truth, strict=True)
        )
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_number_of_workers_changes_nothing(annotations: Annotations, num_workers: int) -> None:
    alone, with_workers = train_batches(annotations, 0), train_batches(annotations, num_workers)
    assert [batch.positions for batch in alone] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert all(is_same(a, b) for a, b in zip(alone, with_workers, strict=True))


def test_another_seed_gives_other_batches(annotations: Annotations) -> None:
    ours, theirs = train_batches(annotations, 0), train_batches(annotations, 0, seed=1)
    assert not any(is_same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_sides_divide_by_32(annotations: Annotations) -> None:
    for batch in train_batches(annotations, 0):
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_has_every_image_once_in_order(annotations: Annotations, num_workers: int) -> None:
    settings = {"short_side": None, "view_size": 64, "num_workers": num_workers}
    batches = list(build_eval_loader(load_config(settings), annotations, 2))
    # The first is 32 pixels high at network size, the others are up to 64: no image is padded further.
    assert [batch.image_ids for batch in batches] == [(1,), (2, 3), (4, 5)]
    assert [tuple(batch.images.shape[2:]) for batch in batches] == [(32, 64), *[(64, 64)] * 2]


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_worker_outlives_the_signals_that_stop_a_training(annotations: Annotations, interrupt: int) -> None:
    before = set(multiprocessing.active_children())
    stream = training_stream(torch.ones(len(annotations), dtype=torch.bool), 2, 2, seed=0, rank=0, world=1)
    loader = iter(
        build_loader(TrainDataset(annotations, TrainTransform(EvalTransform(None, 64)), 0, 2), stream, 1)
    )
    assert next(loader).positions == (0, 1)  # the worker runs
    [worker] = set(multiprocessing.active_children()) - before

    os.kill(worker.pid, interrupt)

    # More batches than were ready before the signal.
    assert [batch.positions[0] for batch in islice(loader, 8)] == list(range(2, 18, 2))
    assert worker.is_alive()
    started_at = time.monotonic()
    del loader
    worker.join(10)
    assert not worker.is_alive()
    assert time.monotonic() - started_at < 4


def test_more_workers_than_cores_are_no_warning_of_torch(annotations: Annotations) -> None:
    loader = build_eval_loader(load_config({"num_workers": 5000}), annotations, 2)
    assert loader.num_workers == 5000  # and warnings are errors here


def test_batches_of_workers_come_in_shared_memory(annotations: Annotations) -> None:
    alone, [batch] = train_batches(annotations, 0, count=1)[0], train_batches(annotations, 1, count=1)
    assert batch.images.is_shared()
    assert not alone.images.is_shared()
    assert batch.images.stride() == alone.images.stride()
