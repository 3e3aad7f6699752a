"""Time of one picture, from file to detections: exported files against torchvision's FCOS, same weights.

    python benchmarks/export.py --image street.jpg [--short-side 800 --longest-side 1333 --rounds 7]
    python benchmarks/export.py --image street.jpg --only torchvision openvino openvino-int8 --keep exported

All in this process, one picture each in turn, median. Weights as in `predict.py`: random, with outputs spread
so that some hundred candidates pass the threshold. 8-bit integers are calibrated on that picture alone: their
time does not depend on it, their accuracy does (`fcos export --int8` measures it). `--keep` keeps the files,
so that a second call need not write them again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.io import ImageReadMode, decode_image

from fcos import Detector
from fcos.adopt import import_model
from fcos.build import LoadedModel, load_model
from fcos.export.calibration import Calibration
from fcos.export.card import to_metadata
from fcos.export.formats import FORMATS, FormatName
from fcos.export.make import card_of, graph_of
from predict import make_torchvision, seconds

NAMES = ("torchvision", "fcos", "torch", "onnx", "onnx-int8", "openvino", "openvino-int8")


def write(loaded: LoadedModel, names: list[str], folder: Path, calibrate_on: Path) -> dict[str, Path]:
    """The exported files that are asked for; those that are there are taken."""
    paths: dict[str, Path] = {}
    models: dict[FormatName, object] = {}
    for name in names:
        format_name, _, int8 = name.partition("-")
        if format_name not in FORMATS:
            continue
        format = FORMATS[format_name]
        paths[name] = folder / (name + format.ending)
        if paths[name].exists():
            continue
        print(f"writing {paths[name].name} ...", flush=True)
        if format_name not in models:
            models[format_name] = format.convert(*graph_of(loaded, format_name))
        model = models[format_name]
        if int8:
            assert format.quantise is not None
            model = format.quantise(model, Calibration(loaded.config, [calibrate_on]), frozenset())
        format.save(model, to_metadata(card_of(loaded), loaded.config), paths[name])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--longest-side", type=int, default=1333)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()

    peer = make_torchvision(args.short_side, args.longest_side)
    runs: dict[str, Callable[[], int]] = {}

    @torch.inference_mode()
    def predict_theirs() -> int:
        image = decode_image(str(args.image), mode=ImageReadMode.RGB).float() / 255
        return len(peer([image])[0]["scores"])

    if "torchvision" in args.only:
        runs["torchvision"] = predict_theirs
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        theirs, ours = folder / "fcos_resnet50_fpn.pth", folder / "model.safetensors"
        torch.save(peer.state_dict(), theirs)
        sizes = [f"short_side={args.short_side}", f"view_size={args.longest_side}"]
        import_model(theirs, ours, changes=sizes, overwrite=True)
        loaded = load_model(ours)
        paths = write(loaded, args.only, folder, args.image)
        if "fcos" in args.only:
            paths["fcos"] = ours
        detectors = {name: Detector.load(path, "cpu") for name, path in paths.items()}

        def run_of(detector: Detector) -> Callable[[], int]:
            return lambda: len(detector.predict(args.image, 0.0))

        runs |= {name: run_of(detectors[name]) for name in NAMES if name in detectors}
        found = {name: run() for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                times[name].append(seconds(run))
    reference = statistics.median(times[next(iter(times))])
    for name, values in times.items():
        spread = f"{min(values) * 1000:.0f} to {max(values) * 1000:.0f}"
        median = statistics.median(values)
        print(
            f"{name:14s} {median * 1000:7.0f} ms ({spread}), ratio {median / reference:.2f}, "
            f"{found[name]} detections"
        )


if __name__ == "__main__":
    main()
