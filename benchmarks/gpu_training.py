"""Training and inference of `fcos_r50` on a GPU beside torchvision's FCOS: images per second and memory.

    python benchmarks/gpu_training.py [--height 800 --width 1344 --batch 16 --steps 20]

To see whether it works, on a CPU: --device cpu --height 64 --width 96 --batch 2 --steps 2 --warm-up 1

Training is the step of `fcos train` (assignment, forward, losses, backward, clipping, SGD, numbers for the
log), once as it is (fp32, nothing else), then with bf16, channels-last and compiled, each on top of the
others. Of torchvision: fp32, and its own mixed precision (fp16 with a gradient scaler; bf16 on a CPU), the
latter measured again at the end, so that a machine that becomes slower shows. Inference is from pixels on the
device to detections, at batch 1 and 32. Images are on the device already and of one size; weights are
random; 80 classes; batch norm, stem and first stage are frozen. Times are medians, memory is the most that
tensors took (nothing without a GPU).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
from first_steps import make_torchvision as make_peer_for_training
from frame import start
from train_step import NUM_CLASSES, make_input

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.data.batch import Batch, GroundTruth
from fcos.model.build import build_model, build_postprocess
from fcos.predict.stop import StopSignal
from fcos.train.devices import build_fabric
from fcos.train.loop import Trainer
from fcos.weights.import_model import import_model
from fcos.weights.load import load_model
from fcos.weights.model_file import ModelCard
from predict import make_torchvision as make_peer_for_inference

Step = Callable[[], object]

OURS: dict[str, dict[str, Any]] = {
    "fcos, fp32": {"channels_last": False},
    "fcos, bf16": {"channels_last": False, "precision": "bf16"},
    "fcos, bf16, channels-last": {"precision": "bf16"},
    "fcos, bf16, channels-last, compiled": {"precision": "bf16", "compile": True},
}
PEER = {"torchvision, fp32": False, "torchvision, mixed precision": True}
INFERENCE_BATCHES = (1, 32)


def make_batch(args: argparse.Namespace, device: torch.device, channels_last: bool) -> Batch:
    """The images and boxes of `train_step`, on the device."""
    images, boxes, labels = make_input(args)
    sizes = torch.tensor([[args.height, args.width]] * args.batch)
    truths = tuple(GroundTruth(*pair) for pair in zip(boxes, labels, strict=True))
    numbers = tuple(range(args.batch))
    order = torch.channels_last if channels_last else torch.contiguous_format
    return Batch(images, sizes, truths, numbers, sizes, numbers).to(device, order)


def our_step(args: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> Step:
    """The step of a real `Trainer`, without its data loader."""
    config = load_config({"model": "fcos_r50", "pretrain": False, "nbatch_train": args.batch, **settings})
    fabric = build_fabric(args.device, precision=config.precision, one_by_default=True)
    record = Record.make(Path("a.jpg"), [[0, 0, 9, 9]], [0], 1, size_hw=(args.height, args.width))
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    annotations = Annotations.from_records([record] * args.batch, names, source=folder, format="list")
    torch.manual_seed(0)
    model = build_model(config, NUM_CLASSES)
    card = ModelCard({}, annotations.class_names, annotations.category_ids)
    trainer = Trainer(fabric, config, model, annotations, None, folder, args.batch, 1, card)
    trainer.network.train()
    batch, stop = make_batch(args, fabric.device, config.channels_last), StopSignal()
    return lambda: trainer.take_step([batch], 0, stop)


def peer_step(args: argparse.Namespace, device: torch.device, mixed: bool) -> Step:
    """torchvision's reference training: autocast, scaler, SGD."""
    model = make_peer_for_training().to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.001, momentum=0.9, weight_decay=1e-4)
    batch = make_batch(args, device, channels_last=False)
    images = [image.float() / 255 for image in batch.images]
    targets = [{"boxes": truth.boxes_xyxy, "labels": truth.labels + 1} for truth in batch.ground_truth]
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=mixed and half == torch.float16)

    def step() -> float:
        with torch.autocast(device.type, half) if mixed else nullcontext():
            total = sum(model(images, targets).values())
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 10)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return total.item()  # as its reference does, for the log

    return step


def training_steps(
    args: argparse.Namespace, device: torch.device, folder: Path
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """What is measured, in turn."""
    for name, mixed in PEER.items():
        yield name, partial(peer_step, args, device, mixed)
    for name, settings in OURS.items():
        if not (args.without_compile and settings.get("compile")):
            yield name, partial(our_step, args, folder, settings)
    yield f"{name_of_mixed()} again", partial(peer_step, args, device, True)


def name_of_mixed() -> str:
    """Of torchvision's row that the goal compares with."""
    return next(name for name, mixed in PEER.items() if mixed)


def inference_steps(
    args: argparse.Namespace, device: torch.device, folder: Path
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Both with the same weights and rules, so that both find the same."""
    peer = make_peer_for_inference(args.height, args.width)
    peer.transform._skip_resize = True
    theirs = folder / "fcos_resnet50_fpn.pth"
    torch.save(peer.state_dict(), theirs)
    import_model(theirs, folder / "model.safetensors", overwrite=True)
    loaded = load_model(folder / "model.safetensors")
    postprocess = build_postprocess(loaded.config)
    peer, ours = peer.to(device), loaded.model.eval().to(device)
    images = make_batch(args, device, channels_last=False).images
    sizes = torch.tensor([[args.height, args.width]] * args.batch, device=device)
    grid = ours.grid((args.height, args.width))

    def run_peer(half: bool) -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return [len(found["scores"]) for found in peer([image.float() / 255 for image in images])]

    def run_ours(network: Callable[..., Any], half: bool, order: torch.memory_format) -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = network(images.contiguous(memory_format=order), sizes)
        return [len(found.scores) for found in postprocess(output, grid, sizes, sizes)]

    def faster(compiled: bool) -> Step:
        network: Callable[..., Any] = ours.to(memory_format=torch.channels_last)
        network = torch.compile(network) if compiled else network
        return lambda: run_ours(network, True, torch.channels_last)

    yield "torchvision, fp32", lambda: lambda: run_peer(False)
    yield "torchvision, bf16", lambda: lambda: run_peer(True)
    yield "fcos, fp32", lambda: lambda: run_ours(ours, False, torch.contiguous_format)
    yield "fcos, bf16, channels-last", lambda: faster(False)
    if not args.without_compile:
        yield "fcos, bf16, channels-last, compiled", lambda: faster(True)


def measure(step: Step, args: argparse.Namespace, device: torch.device) -> tuple[float, float, object]:
    """Median seconds of a step, GiB of its tensors at most, and what the last one gave."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(args.warm_up):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(args.steps):
        finish()
        started_at = time.perf_counter()
        result = step()
        finish()
        times.append(time.perf_counter() - started_at)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return statistics.median(times), memory, result


def table(
    title: str,
    steps: Iterator[tuple[str, Callable[[], Step]]],
    compared_with: str,
    args: argparse.Namespace,
    device: torch.device,
) -> None:
    """Measure each and print a row of Markdown."""
    print(f"\n| {title} | images/s | ms | GiB | times {compared_with} |\n|---|---|---|---|---|", flush=True)
    rates: dict[str, float] = {}
    for name, make in steps:
        step = make()
        seconds, memory, result = measure(step, args, device)
        del step
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        rates[name] = args.batch / seconds
        times = f"{rates[name] / rates[compared_with]:.2f}" if compared_with in rates else ""
        gib = "" if memory != memory else f"{memory:.2f}"
        print(f"| {name} | {rates[name]:.1f} | {seconds * 1000:.1f} | {gib} | {times} |", flush=True)
        if isinstance(result, list):
            print(f"<!-- {sum(result) / len(result):.1f} detections an image -->")


def main(
    height: int = 800,
    width: int = 1344,
    batch: int = 16,
    steps: int = 20,
    warm_up: int = 5,
    device: str = "auto",
    without_compile: Annotated[bool, "C++ for a CPU takes minutes"] = False,
) -> None:
    args = argparse.Namespace(**locals())
    on = build_fabric(device, one_by_default=True).device
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else on.type
    print(f"{name}; torch {torch.__version__}, torchvision {torchvision.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        title = f"training, {args.batch} x {args.height} x {args.width}"
        table(title, training_steps(args, on, Path(folder)), name_of_mixed(), args, on)
        for args.batch in INFERENCE_BATCHES:
            title = f"inference, {args.batch} x {args.height} x {args.width}"
            with torch.inference_mode():
                table(title, inference_steps(args, on, Path(folder)), "torchvision, fp32", args, on)


if __name__ == "__main__":
    start(main)
