"""Read a published weight file: settings, tensors, class names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcos.errors import WeightsError
from fcos.terminal import printable_line
from fcos.weights.model_file import ModelCard, listed
from fcos.weights.published.coco import COCO_IDS, COCO_NAMES, TORCHVISION_NAMES
from fcos.weights.published.layouts import LAYOUTS, MMDETECTION, MMDETECTION_WITHOUT_NORM, Layout, layout_of
from fcos.weights.published.opening import StateFile, open_state
from fcos.weights.published.settings import (
    ChannelOrder,
    Undecided,
    architecture_settings,
    backbone_settings,
    profile,
)

NORM_EPS = 1e-5

# Parts of names of tensors without weights: step counters, stored pixel statistics, grids of points.
HARMLESS = (
    "num_batches_tracked",
    "pixel_mean",
    "pixel_std",
    "anchor_generator.",
    "cell_anchors",
    "integral.",
)

# Parts of published networks that ours lacks: a pattern of their tensor names, the part, and the files.
UNSUPPORTED = (
    (
        r"offset",
        "deformable convolutions",
        'files with "dcn" in their names: FCOS_imprv_dcnv2_... and ..._dcnv2_... of the official code and '
        "AdelaiDet, fcos_r50-dcn-... of MMDetection",
    ),
    (r"\.base_layer\.|\.tree1\.", "the backbone DLA", "AdelaiDet's FCOS-RT files with DLA_34 in their names"),
    (r"\.OSA\d|\.stem_\d/", "the backbone VoVNet", "AdelaiDet's files with V_39 or V_57 in their names"),
    (r"\.features\.\d", "the backbone MobileNetV2", "the official files with MNV2 in their names"),
)

# The network is inferred from these; without one of them its shape is unknown.
ESSENTIAL = (
    "backbone.body.conv1.weight",
    *(f"backbone.body.layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)),
    *(f"pyramid.lateral.{i}.weight" for i in (0, 1, 2)),
    *("head.box_tower.0.weight", "head.logits.weight", "head.distances.weight", "head.quality.weight"),
)
# MMDetection's towers either all have biases, or none do.
TOWER_BIAS = re.compile(r"bbox_head\.\w+_convs\..*\.conv\.bias")
MAX_NAMES = 100_000


@dataclass(frozen=True)
class Published:
    """A detector of another code base.

    Attributes:
        card: with the settings to build the network and to use it as its authors do.
        notes: assumptions, and ignored tensors, in sentences.
        path: of the file.
    """

    card: ModelCard
    notes: tuple[str, ...]
    path: Path
    _tensors: Mapping[str, Tensor] = field(repr=False)
    _layout: Layout = field(repr=False)
    _takes_bgr: bool

    def tensors_for(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by our names, except pixel statistics and counters; `state` is the model's.

        Raises:
            WeightsError: tensors are missing, unexpected, or have another shape; the message lists them.
        """
        found: dict[str, Tensor] = {}
        used, problems = set[str](), list[str]()
        for name, wanted in state.items():
            if name in ("pixel_mean", "pixel_std") or name.endswith("num_batches_tracked"):
                continue
            theirs = self._their_names(name, len(wanted) if wanted.ndim else 0)
            used.update(theirs)
            if missing := [key for key in theirs if key not in self._tensors]:
                problems += [f"missing: {key}" for key in missing]
                continue
            parts = [self._tensors[key] for key in theirs]
            if not parts:  # their network does not have it
                value = torch.ones(wanted.shape) if name == "head.scales" else torch.zeros(wanted.shape)
            elif name == "head.scales" and all(part.numel() == 1 for part in parts):
                value = torch.stack([part.reshape(()) for part in parts])
            else:
                value = parts[0]
            if value.shape != wanted.shape:
                problems.append(f"{theirs[0]} has shape {tuple(value.shape)}, expected {tuple(wanted.shape)}")
            found[name] = value.to(wanted.dtype)
        problems += [
            f"unexpected: {key}" for key in self._tensors if key not in used and not is_harmless(key)
        ]
        if problems:
            raise _does_not_fit(self.path, self._layout.origin, problems)
        return self._adapted(found)

    def _their_names(self, name: str, count: int) -> list[str]:
        """The source of one of our tensors; empty if their network does not have it."""
        if name == "head.scales":
            scales = self._layout.scales
            return [scales.format(level) for level in range(count)] if scales else []
        key = self._layout.translate(name)
        is_optional = self._layout.rules == "mmdetection" and bool(TOWER_BIAS.match(key))
        return [] if is_optional and not any(map(TOWER_BIAS.match, self._tensors)) else [key]

    def _adapted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._takes_bgr:  # ours is always RGB: reverse the channels of the first convolution instead
            tensors["backbone.body.conv1.weight"] = tensors["backbone.body.conv1.weight"].flip(1)
        if self._layout.rules == "official":
            for name in [key for key in tensors if key.endswith(".running_var")]:
                # Their frozen norm adds no eps to the variance, ours does: the weight compensates for it.
                variance, weight = tensors[name], name.replace("running_var", "weight")
                tensors[weight] = tensors[weight] * ((variance + NORM_EPS) / variance).sqrt()
        return tensors


def read_published(path: Path, channel_order: ChannelOrder | None = None) -> Published:
    """A detector of another code base.

    Args:
        path: of the file.
        channel_order: that its network expects, if neither the file nor its name says so.

    Raises:
        WeightsError: the file cannot be opened without running code, is of an unknown code base, lacks
            tensors from which its network is inferred, or does not say what input its network expects.
    """
    file = open_state(path)
    layout = find_layout(file, path)
    _check_supported(file.tensors, layout.origin, path)
    tensors = {layout.modernise(key): value for key, value in file.tensors.items()}
    if layout is MMDETECTION and not any(".gn." in key for key in tensors):
        layout = MMDETECTION_WITHOUT_NORM

    def shape(name: str) -> tuple[int, ...] | None:
        key = layout.translate(name)
        return tuple(tensors[key].shape) if key in tensors else None

    problems = [f"missing: {layout.translate(name)}" for name in ESSENTIAL if shape(name) is None]
    try:
        backbone, architecture = backbone_settings(shape), architecture_settings(shape)
        num_classes = len(tensors[layout.translate("head.logits.weight")])
    except (IndexError, KeyError, TypeError, ZeroDivisionError):  # no convolutions, or of width 0
        problems = problems or ["its convolutions have impossible shapes"]
        raise _does_not_fit(path, layout.origin, problems) from None
    if num_classes == 0:
        problems.append("it has no classes")
    if backbone is None and not problems:
        problems = ["its backbone is not a ResNet or ResNeXt that timm has"]
    if problems or backbone is None:
        raise _does_not_fit(path, layout.origin, problems)
    name = f"{path.parent.name}/{path.name}" if layout.rules == "mmdetection" else path.name
    try:
        taken = profile(layout, backbone["backbone"], tensors, file.about, name, channel_order)
    except Undecided as error:
        raise WeightsError(
            f"{path.name} does not say how to use it: {error}",
            where=str(path),
            fix="restore the file's original name, or convert it to our format first: "
            f"`fcos import {path.name} -o model.safetensors channel_order=bgr` (Caffe), or channel_order=rgb "
            "(PyTorch)",
        ) from None
    preset = {"resnet18": "fcos_r18", "resnet101": "fcos_r101"}.get(backbone["backbone"], "fcos_r50")
    settings = {"model": preset, **backbone, **architecture, **taken.settings, "rules": layout.rules}
    names, ids = class_names_of(layout, num_classes, file.about)
    card = ModelCard(settings, names, ids, origin=layout.origin)
    notes = [*file.notes, *taken.notes]
    if names == _numbered(num_classes):
        notes.append("the file has no class names: set them with `fcos import --names`")
    if aside := [key for key in tensors if is_harmless(key) and not key.endswith("num_batches_tracked")]:
        notes.append(f"unused tensors: {printable_line(', '.join(aside))}")
    return Published(card, tuple(notes), path, tensors, layout, taken.takes_bgr)


def _check_supported(tensors: Mapping[str, Tensor], origin: str, path: Path) -> None:
    """Reject parts of published files that our network does not support."""
    for pattern, what, files in UNSUPPORTED:
        if there := [key for key in tensors if re.search(pattern, key)]:
            raise WeightsError(
                f"{path.name} is a file of {origin} with {what} ({there[0]}), which fcos does not support",
                where=str(path),
                fix=f"give a file without it; affected are {files}",
            )


def find_layout(file: StateFile, path: Path) -> Layout:
    """The code base that uses these tensor names."""
    if (layout := layout_of(file.tensors)) is not None:
        return layout
    if path.name == "last.ckpt":
        raise WeightsError(
            "last.ckpt is a checkpoint for resuming a run, not a model file",
            where=str(path),
            fix=f"give the run folder, {path.parent}, or last.safetensors in it",
        )
    names = ", ".join(list(file.tensors)[:5])
    known = ", ".join(layout.origin for layout in LAYOUTS)
    raise WeightsError(
        f"{path.name} is not an FCOS detector of a known code base; its tensors are {names}, ...",
        where=str(path),
        fix=f"give a model file of fcos, or of {known}",
    )


def class_names_of(
    layout: Layout, num_classes: int, about: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of the outputs: from the file, or COCO's if there are as many."""
    if layout.rules == "torchvision":
        names = TORCHVISION_NAMES
        if num_classes != len(names):
            names = ("(no class 0)", *(f"class {i}" for i in range(1, num_classes)))
        return names, tuple(range(num_classes))
    if (stored := _stored_names(about)) and len(stored) == num_classes and len(set(stored)) == num_classes:
        names = stored
    else:
        names = COCO_NAMES if num_classes == len(COCO_NAMES) else _numbered(num_classes)
    return names, COCO_IDS if names == COCO_NAMES else tuple(range(1, num_classes + 1))


def is_harmless(key: str) -> bool:
    """Whether a tensor of a file may be unused."""
    return any(part in key for part in HARMLESS)


def _stored_names(about: Mapping[str, Any]) -> tuple[str, ...]:
    """MMDetection's `meta`: CLASSES in 2.x, dataset_meta in 3.x."""
    meta = about.get("meta")
    if not isinstance(meta, Mapping):
        return ()
    inner = meta.get("dataset_meta")
    places: list[Mapping[str, Any]] = [meta, inner] if isinstance(inner, Mapping) else [meta]
    for place in places:
        for key in ("CLASSES", "classes"):
            names = place.get(key)
            if isinstance(names, tuple | list) and all(isinstance(name, str) for name in names[:MAX_NAMES]):
                return tuple(map(printable_line, names[:MAX_NAMES]))
    return ()


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(1, count + 1))


def _does_not_fit(path: Path, origin: str, problems: list[str]) -> WeightsError:
    return WeightsError(
        f"{path.name} looks like a file of {origin}, but does not fit its FCOS:{listed(problems)}",
        where=str(path),
        fix="give a complete file of an FCOS with a ResNet or ResNeXt backbone",
    )
