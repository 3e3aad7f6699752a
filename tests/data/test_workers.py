"""Loader processes end with the process that they load for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ..processes import Process

LOADS_UNTIL_KILLED = """
import multiprocessing, sys, time
import torch
from PIL import Image
from fcos.data.annotations import Annotations, Record
from fcos.data.batch import TrainDataset
from fcos.data.loader import training_stream, build_loader
from fcos.data.transforms import EvalTransform, TrainTransform

Image.new("RGB", (64, 64)).save(sys.argv[1])
records = [Record.make(sys.argv[1], [[5, 5, 25, 25]], [0], 1)]
annotations = Annotations.from_records(records, ["cat"], source=sys.argv[1], format="list")
stream = training_stream(torch.ones(1, dtype=torch.bool), 2, 2, seed=0, rank=0, world=1)
dataset = TrainDataset(annotations, TrainTransform(EvalTransform(None, 64)), 0, 2)
loader = iter(build_loader(dataset, stream, 2))
next(loader)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_workers_end_when_the_training_is_killed(tmp_path: Path) -> None:
    process = Process("-c", LOADS_UNTIL_KILLED, tmp_path / "a.png")
    workers = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.close()
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
