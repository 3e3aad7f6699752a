"""Formats whose runtimes do not support decoding and NMS: their graph ends before them.

Such a format is a folder with the network, `metadata.json`, and `decode.py`, which does the rest. We use it
too, so that the comparison with PyTorch covers it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fcos.config.conventions import Conventions
from fcos.errors import FcosError, WeightsError
from fcos.export.card import cannot_open
from fcos.export.decode import decode
from fcos.export.graph import DetectionGraph, OpenRun, Run
from fcos.files import read_text
from fcos.model.fcos import FCOS
from fcos.model.postprocess import ImageDetections, PostProcess
from fcos.predict.pipeline import TorchBackend

METADATA, DECODER = "metadata.json", "decode.py"

Compute = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # `(3, H, W)` to `(classes + 5, points)`


class Undecoded(nn.Module):
    """The network of a graph: padded pixels to predictions at every point."""

    def __init__(self, graph: DetectionGraph) -> None:
        super().__init__()
        ours, rules = Conventions(), graph.rules
        of_rules = {name: value for name, value in ours._asdict().items() if hasattr(rules, name)}
        if rules != replace(rules, **of_rules) or graph.network.points != ours.points:
            raise FcosError(
                "this format does not support the conventions of other code bases",
                fix="use --format onnx, openvino or torch",
            )
        self.network = graph.network

    def forward(self, images: Tensor) -> Tensor:
        """`(1, 3, H, W)` float32 RGB in 0..255, padded with the mean, to what `decode` takes."""
        network = self.network
        pixels = (images - network.pixel_mean) / network.pixel_std
        features = network.pyramid(network.backbone(pixels))
        levels = [network.head.level(feature, index) for index, feature in enumerate(features)]
        maps = [torch.cat([each for each in level if each is not None], dim=1) for level in levels]
        return torch.cat([each.flatten(2) for each in maps], dim=2)


def save_folder(network: Mapping[str, bytes], metadata: Mapping[str, str], folder: Path) -> None:
    """Write the files of a network, by name, with metadata and decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in network.items():
        (folder / name).write_bytes(file)
    content = {key: json.loads(text) for key, text in metadata.items()}
    (folder / METADATA).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / DECODER).write_bytes(files("fcos.export").joinpath(DECODER).read_bytes())


def on_mean(
    image: NDArray[Any], size_hw: tuple[int, int], input_hw: tuple[int, int], mean: Sequence[float]
) -> NDArray[np.float32]:
    """The input of the network, `(3, height, width)`: an image without its padding, padded with the mean."""
    (height, width), channels = size_hw, np.array(mean, np.float32)
    pixels = np.tile(channels[:, None, None], (1, *input_hw))
    pixels[:, :height, :width] = image[:, :height, :width]
    return pixels


def open_folder(
    folder: Path, open: Callable[[int], Compute], input_hw: tuple[int, int] | None = None
) -> tuple[dict[str, str], OpenRun]:
    """Metadata of a folder, as in `to_metadata`, and functions that run its network and decode the output.

    Args:
        open: makes `Compute` for a number of concurrent calls.
        input_hw: the fixed input size of the network; None: any size.
    """
    path = folder / METADATA
    try:
        card = json.loads(read_text(path, WeightsError))
        metadata = {key: json.dumps(value) for key, value in card.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise cannot_open(path, "as JSON", str(error)) from error

    def open_run(num_calls: int) -> Run:
        compute = open(num_calls)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            images, *sizes = inputs
            found = []
            for index, (image, size, original) in enumerate(
                zip(images.numpy(), *map(_pairs, sizes), strict=True)
            ):
                shape = input_hw or image.shape[1:]
                pixels = on_mean(image, size, shape, card["pixel_mean"])
                detections = decode(compute(pixels), card, shape, size, original)
                found.append((*detections, np.full(len(detections[1]), index)))
            return tuple(torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True))

        return run

    return metadata, open_run


def _pairs(sizes_hw: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in sizes_hw.tolist()]


class FixedSize(TorchBackend):
    """The network with a fixed input size, to compare with a file that has one.

    (The padding changes the result, since group norm includes it.)
    """

    def __init__(self, model: FCOS, postprocess: PostProcess, input_hw: tuple[int, int]) -> None:
        super().__init__(model, postprocess)
        self.input_hw = input_hw

    def detect_batch(
        self, images: Tensor, sizes_hw: Tensor, original_sizes_hw: Tensor
    ) -> list[ImageDetections]:
        """See `Backend`."""
        below, right = (side - old for side, old in zip(self.input_hw, images.shape[2:], strict=True))
        return super().detect_batch(F.pad(images, (0, right, 0, below)), sizes_hw, original_sizes_hw)
