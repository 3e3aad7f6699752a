"""Named recipes: which settings a `model` changes from the defaults, each with its reason.

A preset only changes defaults: the config file and the command line win over it.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Change(NamedTuple):
    """What a preset gives a setting instead of its default, and why."""

    value: Any
    reason: str


class Preset(NamedTuple):
    """A recipe in one sentence, and its changes by key."""

    summary: str
    changes: dict[str, Change]


# The plain head of the papers is half of all work of the network (51 % with ResNet-50), and a large input
# costs the rest: both are what a CPU cannot pay. On BCCD torchvision's FCOS with MobileNetV2 reached the same
# AP with width 96, two convolutions and a cosine in under a third of the time.
_FOR_CPUS = {
    "fpn_channels": Change(96, "a narrow pyramid: the head that reads it is where the time goes"),
    "head_channels": Change(96, "work of the head grows with the square of its width"),
    "head_convs": Change(2, "half the papers' depth, for the same reason"),
    "short_side": Change(320, "a sixth of the pixels of 800"),
    "view_size": Change(532, "the papers' 1333 : 800 at this size"),
    "freeze_stages": Change(0, "few weights: all of them have to adapt (BCCD: +0.7 AP after 6 of 12 epochs)"),
    "quality": Change("iou", "ranks boxes by how well they fit; AdelaiDet gains 0.7 AP by it"),
    "distance_init": Change(4.0, "boxes begin with an area: a short training has no time to wait for it"),
    "optimizer": Change("adamw", "needs no tuning of the rate for each backbone"),
    "lr_base": Change(0.001, "for AdamW at a batch of 8"),
    "lr_backbone": Change(
        0.1, "a rate for fresh weights spoils trained ones (VOC07, 300 steps: AP50 3.5 to 12.2)"
    ),
    "head_init": Change("kaiming", "towers that AdamW need not blow up first (with the above: to AP50 20.4)"),
    "weight_decay": Change(0.05, "AdamW's decay does not grow with the gradient: it needs more"),
    "grad_clip": Change(10.0, "for the first steps"),
    "lr_policy": Change("cosine", "no steps to place in a training of unknown length"),
    "warmup_iter": Change(0.05, "500 iterations may be the whole of a short training"),
    "ema_decay": Change(0.99, "an average over the last hundred steps, for noisy small batches"),
    "nbatch_train": Change(8, "more steps from few images"),
    "nbatch_eval": Change(8, "fits small memories"),
}

ALL_PRESETS: dict[str, Preset] = {
    "fcos_r50": Preset("the papers' improved recipe on ResNet-50: the defaults", {}),
    "fcos_r18": Preset(
        "the same on ResNet-18, for small GPUs",
        {"backbone": Change("resnet18", "11 instead of 24 million weights")},
    ),
    "fcos_r101": Preset(
        "the same on ResNet-101, for more accuracy",
        {"backbone": Change("resnet101", "43 instead of 24 million weights")},
    ),
    "fcos_seed": Preset(
        "the seed's detector, without its defects",
        {
            "quality": Change("none", "the seed ranks detections by their class score alone"),
            "box_loss": Change("iou", "the seed's -log(IoU)"),
            "box_activation": Change(
                "exp", "the seed's; times the level's stride, as its fixed factors 32 to 512"
            ),
            "head_norm": Change("none", "the seed's towers have no normalisation"),
            "fpn_extra_from": Change("c5", "the seed makes P6 from C5"),
            "view_size": Change(1025, "the seed's longest side"),
            "short_side": Change(None, "the seed scales the longest side, whatever the shorter becomes"),
            "grad_clip": Change(3.0, "the seed's; without normalisation the first steps need it"),
        },
    ),
    "fcos_lite0": Preset(
        "a small model for CPUs on EfficientNet-Lite0, whose weights come with pip",
        {
            "backbone": Change("tf_efficientnet_lite0", "made for CPUs: no squeeze-excite, ReLU6"),
            **_FOR_CPUS,
        },
    ),
    "fcos_mobilenetv2": Preset(
        "a small model for CPUs on MobileNetV2",
        {"backbone": Change("mobilenetv2_100", "the backbone that most CPU detectors use"), **_FOR_CPUS},
    ),
}

PRESETS: dict[str, dict[str, Any]] = {
    name: {key: change.value for key, change in preset.changes.items()}
    for name, preset in ALL_PRESETS.items()
}
