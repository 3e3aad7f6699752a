"""The losses of one training, step by step, however its batch is divided; on CPU processes with gloo.

    python benchmarks/scaling.py

Trains a small network on coco_mini: 8 steps of 32 images, every source of randomness on. Prints a table, with
a row of SLURM where `srun` is there and has two CPUs to give.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from frame import start

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_mini"
SETTINGS = {
    "list_train": str(DATA / "annotations" / "instances_train2017.json"),
    "root_train": str(DATA / "train2017"),
    "backbone": "test_efficientnet",
    "pretrain": False,
    "freeze_stages": 0,
    "fpn_channels": 16,
    "head_channels": 16,
    "head_convs": 1,
    "view_size": 128,
    "short_side": None,
    "img_scale_min": 0.7,
    "augmentation": True,
    "ema_decay": 0.9,
    "device": "cpu",
    "num_workers": 0,
    "nbatch_train": 32,
    "epochs": 2,
    "warmup_iter": 2,
    "tensorboard": False,
}
TRAIN = [sys.executable, "-m", "fcos", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *TRAIN[1:]]
SRUN = ["srun", "--ntasks=2", "--kill-on-bad-exit=1", *TRAIN]
WAYS = {
    "1 process": (TRAIN, []),
    "2 x accumulated": (TRAIN, ["micro_batch=16"]),
    "2 processes": (TRAIN, ["num_processes=2"]),
    "torchrun, 2 processes": (TORCHRUN, []),
    **({"srun, 2 processes": (SRUN, [])} if shutil.which("srun") else {}),
    "2 processes, 2 x accumulated": (TRAIN, ["num_processes=2", "micro_batch=8"]),
}


def losses(folder: Path, launcher: list[str], words: list[str]) -> list[float]:
    """Of every step."""
    (folder / "train.json").write_text(json.dumps(SETTINGS))
    run = folder / f"run-{len(list(folder.iterdir()))}"
    command = [*launcher, str(folder / "train.json"), f"run_folder={run}", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = {way: losses(Path(folder), *how) for way, how in WAYS.items()}
    wanted = table["1 process"]
    steps = range(1, len(wanted) + 1)
    print("| loss at step | " + " | ".join(map(str, steps)) + " | largest relative difference |")
    print("|---" * (len(wanted) + 2) + "|")
    for way, values in table.items():
        largest = max(abs(a - b) / b for a, b in zip(values, wanted, strict=True))
        print(f"| {way} | " + " | ".join(f"{value:.7f}" for value in values) + f" | {largest:.1e} |")


if __name__ == "__main__":
    start(main)
