from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos.data.annotations import Annotations, Record
from fcos.data.batch import Batch
from fcos.data.dataset import EvalDataset, TrainDataset
from fcos.data.loader import build_loader
from fcos.data.sampler import ShardSampler, StreamSampler
from fcos.data.transforms import EvalTransform, TrainTransform, build_policy


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """Five noisy images of different sizes, one box in each."""
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    records = []
    for number in range(5):
        pixels = random.integers(0, 255, (30 + 5 * number, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        records.append(Record.make(folder / f"{number}.png", [[5, 5, 25, 25]], [0], number + 1))
    return Annotations.from_records(records, ["cat"], source=folder, format="list")


def train_batches(annotations: Annotations, num_workers: int, seed: int = 0, count: int = 4) -> list[Batch]:
    transform = TrainTransform(None, 64, scale_min=0.5, augment=build_policy("strong"))
    sampler = StreamSampler(torch.ones(len(annotations), dtype=torch.bool), 4, 2, seed, rank=0, world=1)
    loader = build_loader(
        TrainDataset(annotations, transform, seed, 4), sampler, num_workers, pin_memory=False
    )
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
    dataset = EvalDataset(annotations, EvalTransform(None, 64))
    loader = build_loader(dataset, ShardSampler(5, batch_size=2), num_workers, pin_memory=False)
    batches = list(loader)
    # The first is 32 pixels high at network size, the others are up to 64: no image is padded further.
    assert [batch.image_ids for batch in batches] == [(1,), (2,), (3, 4), (5,)]
    assert [tuple(batch.images.shape[2:]) for batch in batches] == [(32, 64), *[(64, 64)] * 3]


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_worker_outlives_the_signals_that_stop_a_training(annotations: Annotations, interrupt: int) -> None:
    before = set(multiprocessing.active_children())
    sampler = StreamSampler(torch.ones(len(annotations), dtype=torch.bool), 2, 2, seed=0, rank=0, world=1)
    loader = iter(build_loader(TrainDataset(annotations, TrainTransform(None, 64), 0, 2), sampler, 1, False))
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
    sampler = ShardSampler(5, batch_size=2)
    loader = build_loader(EvalDataset(annotations, EvalTransform(None, 64)), sampler, 5000, pin_memory=False)
    assert loader.num_workers == 5000  # and warnings are errors here


def test_batches_of_workers_come_in_shared_memory(annotations: Annotations) -> None:
    alone, [batch] = train_batches(annotations, 0, count=1)[0], train_batches(annotations, 1, count=1)
    assert batch.images.is_shared()
    assert not alone.images.is_shared()
    assert batch.images.stride() == alone.images.stride()


LOADS_UNTIL_KILLED = """
import multiprocessing, sys, time
import torch
from PIL import Image
from fcos.data.annotations import Annotations, Record
from fcos.data.dataset import TrainDataset
from fcos.data.loader import build_loader
from fcos.data.sampler import StreamSampler
from fcos.data.transforms import TrainTransform

Image.new("RGB", (64, 64)).save(sys.argv[1])
records = [Record.make(sys.argv[1], [[5, 5, 25, 25]], [0], 1)]
annotations = Annotations.from_records(records, ["cat"], source=sys.argv[1], format="list")
sampler = StreamSampler(torch.ones(1, dtype=torch.bool), 2, 2, seed=0, rank=0, world=1)
dataset = TrainDataset(annotations, TrainTransform(None, 64), 0, 2)
loader = iter(build_loader(dataset, sampler, 2, pin_memory=False))
next(loader)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_workers_end_when_the_training_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADS_UNTIL_KILLED, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    assert len(workers) == 2
    end = time.monotonic() + 20  # they look after their parent every 5 seconds
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < end, "loader processes outlive the training"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody asked for yet does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
