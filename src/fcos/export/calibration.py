"""For quantization: the calibration images, and the nodes of each part of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcos.config import TrainConfig
from fcos.data.image import read_image
from fcos.data.loader import PADDING_MULTIPLE, build_eval_transform
from fcos.data.transforms import pad
from fcos.export.card import input_dtype
from fcos.export.graph import INPUTS
from fcos.predict.tiles import Views, parts_of

MAX_IMAGES = 300  # also of tiles and images together

# Parts of the network that may stay in float32, and their modules, cheapest first. The stem is the first
# convolution, whatever its name.
OUTPUTS = ("head.logits", "head.distances", "head.quality")
PARTS: dict[str, tuple[str, ...]] = {
    "sums": (),  # not convolutions: additions of two branches
    "outputs": OUTPUTS,
    "stem": ("backbone",),
    "pyramid": ("pyramid",),
    "head": ("head.classification_tower", "head.box_tower", *OUTPUTS),
}

Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Calibration:
    """Inputs of the graph, one image each; can be iterated repeatedly.

    For a model with the setting `tile`, each is a random view (tile or whole image) of an image.

    Attributes:
        config: of the model.
        images: files.
    """

    config: TrainConfig
    images: Sequence[Path]

    @property
    def num_images(self) -> int:
        """Number of images used; with tiles there are more inputs, so `len` would mislead NNCF."""
        return min(len(self.images), MAX_IMAGES)

    def __iter__(self) -> Iterator[Inputs]:
        transform, dtype = build_eval_transform(self.config), getattr(torch, input_dtype(self.config))
        views, num_views = Views(self.config.tile or 0), MAX_IMAGES // max(1, self.num_images)
        for seed, path in enumerate(self.images[: self.num_images]):
            parts = list(parts_of(read_image(path), views, transform.longest_side))
            for place in np.random.default_rng(seed).permutation(len(parts))[:num_views]:
                image = parts[place].pixels
                images, sizes_hw = pad([transform(image)], PADDING_MULTIPLE)
                tensors = images.to(dtype), sizes_hw, torch.tensor([image.shape[1:]])
                yield {name: tensor.numpy() for name, tensor in zip(INPUTS, tensors, strict=True)}


def in_float32(names: Sequence[str], parts: frozenset[str]) -> set[str]:
    """The convolutions of these parts; `names` begin with their modules, in the order of the graph."""
    found = {name for part in parts - {"stem", "sums"} for name in names if name.startswith(PARTS[part])}
    if "stem" in parts:
        found.add(next(name for name in names if name.startswith(PARTS["stem"])))
    return found
