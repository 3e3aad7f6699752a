"""Time of one image, from file to detections: exported files against torchvision's FCOS, same weights.

    python benchmarks/export.py --image street.jpg [--short-side 800 --longest-side 1333 --rounds 7]
    python benchmarks/export.py --image street.jpg --only torchvision openvino openvino-int8 --keep exported

Each in a process of its own, one image each in turn, median. Weights as in `predict.py`: random, with
outputs spread so that some hundred candidates pass the threshold. 8-bit integers are calibrated on that
image alone: their time does not depend on it, their accuracy does (`fcos export --int8` measures it).
`--keep` keeps the files, so that a second call need not write them again.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from frame import Make, measure, start

from fcos.export.calibration import Calibration
from fcos.export.card import to_metadata
from fcos.export.formats import FORMATS, export_card, graph_of
from fcos.weights.import_model import import_model
from fcos.weights.load import ExportFormat, LoadedModel, load_model
from predict import detector_run, make_torchvision, torchvision_run

NAMES = ("torchvision", "fcos", "torch", "onnx", "onnx-int8", "openvino", "openvino-int8")


def write(loaded: LoadedModel, names: list[str], folder: Path, calibrate_on: Path) -> dict[str, Path]:
    """The exported files that are asked for; those that are there are taken."""
    paths: dict[str, Path] = {}
    models: dict[ExportFormat, object] = {}
    for name in names:
        format_name, _, int8 = name.partition("-")
        if format_name not in FORMATS:
            continue
        format = FORMATS[format_name]
        paths[name] = folder / (name + format.ENDING)
        if paths[name].exists():
            continue
        print(f"writing {paths[name].name} ...", flush=True)
        if format_name not in models:
            models[format_name] = format.convert(*graph_of(loaded, format_name))
        model = models[format_name]
        if int8:
            assert format.quantize is not None
            model = format.quantize(model, Calibration(loaded.config, [calibrate_on]), frozenset())
        format.save(model, to_metadata(export_card(loaded), loaded.config), paths[name])
    return paths


def main(
    image: Path,
    short_side: int = 800,
    longest_side: int = 1333,
    rounds: int = 7,
    only: Annotated[list[str], ", ".join(NAMES)] = list(NAMES),  # noqa: B006
    keep: Path | None = None,
    keep_freed_memory: Annotated[bool, "as the `fcos` command does"] = False,
) -> None:
    sizes = (short_side, longest_side)
    makes: dict[str, Make] = {}
    if "torchvision" in only:
        makes["torchvision"] = partial(torchvision_run, image, *sizes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        theirs, ours = folder / "fcos_resnet50_fpn.pth", folder / "model.safetensors"
        torch.save(make_torchvision(*sizes).state_dict(), theirs)
        changes = [f"short_side={short_side}", f"view_size={longest_side}"]
        import_model(theirs, ours, changes=changes, overwrite=True)
        paths = {"fcos": ours} | write(load_model(ours), only, folder, image)
        for name in NAMES:
            if name in only and name in paths:
                makes[name] = partial(detector_run, image, paths[name])
        measured = measure(makes, rounds, keep_memory=keep_freed_memory)
    reference = next(iter(measured.values())).median_ms
    for name, result in measured.items():
        print(f"{name:14s} {result}, ratio {result.median_ms / reference:.2f}")


if __name__ == "__main__":
    start(main)
