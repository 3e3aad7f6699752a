"""Time of one image, from file to detections: `Detector.predict` against torchvision's FCOS, same weights.

    python benchmarks/predict.py --image street.jpg [--short-side 800 --longest-side 1333 --rounds 7]
    python benchmarks/predict.py --image street.jpg --score-threshold 0

Each in a process of its own, one image each in turn, median. The weights are random, with outputs spread so
that some hundred candidates pass the threshold, as with a trained network; ours reads torchvision's file and
follows its rules, so both find the same. With a threshold of 0 every point is a candidate for each of the
91 outputs: 2 million pairs, of which the best 1,000 of each level enter NMS.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torchvision
from frame import Run, measure, start
from torchvision.io import ImageReadMode, decode_image

from fcos import Detector
from fcos.weights.import_model import import_model


def make_torchvision(short_side: int, longest_side: int, score_threshold: float = 0.2) -> torch.nn.Module:
    """torchvision's network as it is used: in evaluation mode, batch norm frozen."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=short_side,
        max_size=longest_side,
        score_thresh=score_threshold,
    ).eval()
    for name, module in model.backbone.body.named_modules():
        if name.endswith("bn3"):  # a random network without live batch norm would overflow
            torch.nn.init.constant_(module.weight, 0.2)
    head = model.head.classification_head.cls_logits
    torch.nn.init.normal_(head.weight, std=0.03)
    torch.nn.init.constant_(head.bias, -5.5)
    return model


def torchvision_run(image: Path, short_side: int, longest_side: int, score_threshold: float = 0.2) -> Run:
    """Number of detections in the image, by torchvision."""
    model = make_torchvision(short_side, longest_side, score_threshold)

    @torch.inference_mode()
    def run() -> int:
        pixels = decode_image(str(image), mode=ImageReadMode.RGB).float() / 255
        return len(model([pixels])[0]["scores"])

    return run


def detector_run(image: Path, file: Path) -> Run:
    """Number of detections in the image, by a file that `Detector.load` takes."""
    detector = Detector.load(file, device="cpu")
    return lambda: len(detector.predict(image, 0.0))


def main(
    image: Path,
    short_side: int = 800,
    longest_side: int = 1333,
    score_threshold: Annotated[float, "torchvision's default is 0.2"] = 0.2,
    rounds: int = 7,
    keep_freed_memory: Annotated[bool, "as the `fcos` command does"] = False,
) -> None:
    how = (short_side, longest_side, score_threshold)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "fcos_resnet50_fpn.pth", Path(folder) / "model.safetensors"
        torch.save(make_torchvision(*how).state_dict(), theirs)
        changes = [f"short_side={short_side}", f"view_size={longest_side}"]
        import_model(theirs, ours, changes=[*changes, f"score_threshold={score_threshold}"])
        makes = {
            "torchvision": partial(torchvision_run, image, *how),
            "fcos": partial(detector_run, image, ours),
        }
        measured = measure(makes, rounds, keep_memory=keep_freed_memory)
    for name, result in measured.items():
        print(f"{name:12s} {result}")
    print(f"ratio        {measured['fcos'].median_ms / measured['torchvision'].median_ms:7.2f}")


if __name__ == "__main__":
    start(main)
