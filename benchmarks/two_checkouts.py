"""Prediction and training step of two checkouts of this repository in turn, on one thread of a CPU.

    python benchmarks/two_checkouts.py BEFORE AFTER [--rounds 7 --models fcos_lite0 fcos_r50]

Each runs in a process of its own that keeps freed memory, as the `fcos` command does, with random weights. A
prediction is one image at the size of the preset, from pixels to detections; a training step takes two images
of 416 x 544: assignment, forward, losses, backward, clipping and SGD. Processor time, since other work on the
machine changes it less than the time on the clock; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MODELS = ("fcos_lite0", "fcos_mobilenetv2", "fcos_r18", "fcos_r50")
KINDS = ("predict", "train")


def make_run(kind: str, name: str) -> Callable[[], object]:
    """One prediction or one training step, with the package of this process."""
    import torch

    from fcos.config import load_config
    from fcos.cpu.memory import keep_freed_memory
    from fcos.data.batch import Batch, GroundTruth
    from fcos.model.build import build_assigner, build_loss, build_model, build_postprocess
    from fcos.model.fcos import FCOS
    from fcos.predict.pipeline import TorchBackend
    from fcos.train.optimizer import build_optimizer

    try:
        from fcos.cpu.training import for_training
    except ImportError:  # older checkouts: the model was made for CPUs

        def for_training(model: FCOS) -> FCOS:
            return model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    config = load_config({"model": name, "pretrain": False})
    number, height, width = (
        (1, config.short_side or 0, config.view_size) if kind == "predict" else (2, 416, 544)
    )
    height, width = (-(-side // 32) * 32 for side in (height, width))
    images = torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    sizes, boxes = (
        torch.tensor([[height, width]] * number),
        torch.tensor([[10.0, 20, 200, 300], [50, 50, 90, 99]]),
    )
    truth, labels = GroundTruth(boxes, torch.tensor([1, 2])), [torch.tensor([1, 2])] * number
    model = build_model(config, 80).to(memory_format=torch.channels_last)
    if kind == "predict":
        ids = tuple(range(number))
        batch = Batch(images, sizes, (truth,) * number, ids, sizes, ids)
        backend = TorchBackend(model.eval(), build_postprocess(config))
        return lambda: backend.detect([batch])
    network = for_training(model).train()
    assign, loss, optimizer = build_assigner(config), build_loss(config), build_optimizer(config, model)
    grid = model.grid((height, width))

    def step() -> None:
        targets = assign(grid, [boxes] * number, labels)
        losses = loss(network(images, sizes), grid, targets, targets.normalizers())
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        optimizer.zero_grad()

    return step


def serve(kind: str, name: str) -> None:
    """Run once for each line that comes in, and answer with the processor time in seconds."""
    run = make_run(kind, name)
    for _ in sys.stdin:
        started_at = time.process_time()
        run()
        print(time.process_time() - started_at, flush=True)


def measure(checkouts: list[Path], kind: str, name: str, rounds: int) -> list[list[float]]:
    """Seconds of each round of each checkout; one round before them is not counted."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", kind, name]
    processes = [
        subprocess.Popen(
            command,
            env={"PYTHONPATH": str(checkout.resolve() / "src"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for checkout in checkouts
    ]
    times: list[list[float]] = [[] for _ in processes]
    for _ in range(rounds + 1):
        for process, values in zip(processes, times, strict=True):
            assert process.stdin is not None
            assert process.stdout is not None
            print(file=process.stdin, flush=True)
            values.append(float(process.stdout.readline()))
    for process in processes:
        process.communicate()
    return [values[1:] for values in times]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="BEFORE AFTER")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve)
    print("| | before, ms | after, ms | ratio |\n|---|---|---|---|")
    for kind in args.kinds:
        for name in args.models:
            before, after = measure(args.checkouts, kind, name, args.rounds)
            ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
            medians = " | ".join(f"{statistics.median(values) * 1000:.0f}" for values in (before, after))
            print(f"| {kind}, `{name}` | {medians} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
