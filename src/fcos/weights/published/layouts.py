"""The names of our tensors in five other code bases.

A layout translates the name of one of our tensors to theirs by replacing prefixes (or other parts) in
sequence. All but MMDetection number the layers of their towers as we do (convolution, norm, ReLU).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """The names of one code base.

    Attributes:
        origin: its name, for users.
        rules: the value of the setting `rules`.
        sign: a name prefix that only its detectors have.
        names: parts of our names and theirs, replaced in this order.
        scales: their name for the scale of level {}, or None if levels have no scale.
        older: parts of names in older files, and their current forms.
    """

    origin: str
    rules: str
    sign: str
    names: Names
    scales: str | None = None
    older: Names = ()

    def translate(self, name: str) -> str:
        """Their name for our tensor."""
        return _replace(name, self.names)

    def modernise(self, name: str) -> str:
        """Their current name of a tensor in an older file."""
        return _replace(name, self.older)


def _replace(name: str, parts: Names) -> str:
    for old, new in parts:
        name = name.replace(old, new)
    return name


_DETECTRON2_BACKBONE: Names = (
    ("backbone.body.conv1.", "backbone.bottom_up.stem.conv1."),
    ("backbone.body.bn1.", "backbone.bottom_up.stem.conv1.norm."),
    *((f"backbone.body.layer{stage}.", f"backbone.bottom_up.res{stage + 1}.") for stage in (1, 2, 3, 4)),
    *((f".bn{i}.", f".conv{i}.norm.") for i in (1, 2, 3)),
    (".downsample.0.", ".shortcut."),
    (".downsample.1.", ".shortcut.norm."),
    *((f"pyramid.lateral.{i}.", f"backbone.fpn_lateral{i + 3}.") for i in (0, 1, 2)),
    *((f"pyramid.output.{i}.", f"backbone.fpn_output{i + 3}.") for i in (0, 1, 2)),
    *((f"pyramid.extra.{i}.", f"backbone.top_block.p{i + 6}.") for i in (0, 1)),
)

ADELAIDET = Layout(
    "AdelaiDet",
    "adelaidet",
    "proposal_generator.fcos_head.",
    (
        *_DETECTRON2_BACKBONE,
        ("head.classification_tower.", "proposal_generator.fcos_head.cls_tower."),
        ("head.box_tower.", "proposal_generator.fcos_head.bbox_tower."),
        ("head.logits.", "proposal_generator.fcos_head.cls_logits."),
        ("head.distances.", "proposal_generator.fcos_head.bbox_pred."),
        ("head.quality.", "proposal_generator.fcos_head.ctrness."),
    ),
    scales="proposal_generator.fcos_head.scales.{}.scale",
    # its converter of official files keeps the official name
    older=((".fcos_head.centerness.", ".fcos_head.ctrness."),),
)

DETECTRON2 = Layout(
    "detectron2",
    "detectron2",
    "head.cls_subnet.",
    (
        *_DETECTRON2_BACKBONE,
        ("head.classification_tower.", "head.cls_subnet."),
        ("head.box_tower.", "head.bbox_subnet."),
        ("head.logits.", "head.cls_score."),
        ("head.distances.", "head.bbox_pred."),
        ("head.quality.", "head.ctrness."),
    ),
)

OFFICIAL = Layout(
    "the official repository",
    "official",
    "rpn.head.",
    (
        ("backbone.body.conv1.", "backbone.body.stem.conv1."),
        ("backbone.body.bn1.", "backbone.body.stem.bn1."),
        *((f"pyramid.lateral.{i}.", f"backbone.fpn.fpn_inner{i + 2}.") for i in (0, 1, 2)),
        *((f"pyramid.output.{i}.", f"backbone.fpn.fpn_layer{i + 2}.") for i in (0, 1, 2)),
        *((f"pyramid.extra.{i}.", f"backbone.fpn.top_blocks.p{i + 6}.") for i in (0, 1)),
        ("head.classification_tower.", "rpn.head.cls_tower."),
        ("head.box_tower.", "rpn.head.bbox_tower."),
        ("head.logits.", "rpn.head.cls_logits."),
        ("head.distances.", "rpn.head.bbox_pred."),
        ("head.quality.", "rpn.head.centerness."),
    ),
    scales="rpn.head.scales.{}.scale",
)

TORCHVISION = Layout(
    "torchvision",
    "torchvision",
    "head.classification_head.",
    (
        *((f"pyramid.lateral.{i}.", f"backbone.fpn.inner_blocks.{i}.0.") for i in (0, 1, 2)),
        *((f"pyramid.output.{i}.", f"backbone.fpn.layer_blocks.{i}.0.") for i in (0, 1, 2)),
        *((f"pyramid.extra.{i}.", f"backbone.fpn.extra_blocks.p{i + 6}.") for i in (0, 1)),
        ("head.classification_tower.", "head.classification_head.conv."),
        ("head.box_tower.", "head.regression_head.conv."),
        ("head.logits.", "head.classification_head.cls_logits."),
        ("head.distances.", "head.regression_head.bbox_reg."),
        ("head.quality.", "head.regression_head.bbox_ctrness."),
    ),
    # Before 0.13 the pyramid's convolutions were not in separate blocks.
    older=tuple(
        (f"backbone.fpn.{kind}_blocks.{i}.{what}", f"backbone.fpn.{kind}_blocks.{i}.0.{what}")
        for kind in ("inner", "layer")
        for i in (0, 1, 2)
        for what in ("weight", "bias")
    ),
)


def _mmdetection(layers: int) -> Layout:
    """Its towers number blocks of `layers` layers (convolution, norm if any, ReLU); ours number layers."""
    towers = (
        (f"head.{ours}.{layers * block + i}.", f"bbox_head.{theirs}.{block}.{part}.")
        for ours, theirs in (("classification_tower", "cls_convs"), ("box_tower", "reg_convs"))
        for block in range(8)
        for i, part in enumerate(("conv", "gn")[: layers - 1])
    )
    return Layout(
        "MMDetection",
        "mmdetection",
        "bbox_head.",
        (
            ("backbone.body.", "backbone."),
            *((f"pyramid.lateral.{i}.", f"neck.lateral_convs.{i}.conv.") for i in (0, 1, 2)),
            *((f"pyramid.output.{i}.", f"neck.fpn_convs.{i}.conv.") for i in (0, 1, 2)),
            *((f"pyramid.extra.{i}.", f"neck.fpn_convs.{i + 3}.conv.") for i in (0, 1)),
            *towers,
            ("head.logits.", "bbox_head.conv_cls."),
            ("head.distances.", "bbox_head.conv_reg."),
            ("head.quality.", "bbox_head.conv_centerness."),
        ),
        scales="bbox_head.scales.{}.scale",
        # up to 2.2
        older=tuple(
            (f"bbox_head.fcos_{part}.", f"bbox_head.conv_{part}.") for part in ("cls", "reg", "centerness")
        ),
    )


MMDETECTION, MMDETECTION_WITHOUT_NORM = _mmdetection(3), _mmdetection(2)

LAYOUTS = (ADELAIDET, DETECTRON2, OFFICIAL, MMDETECTION, TORCHVISION)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The code base with these tensor names, or None."""
    there = list(names)
    return next((layout for layout in LAYOUTS if any(key.startswith(layout.sign) for key in there)), None)
