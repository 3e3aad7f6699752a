"""Presets: which defaults each value of `model` changes, and why.

A preset only changes defaults: the config file and the command line override it.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Change(NamedTuple):
    """The value of a setting in a preset, and why it differs from the default."""

    value: Any
    reason: str


class Preset(NamedTuple):
    """A preset in one sentence, and its changes by key."""

    summary: str
    changes: dict[str, Change]


# The papers' head is half of the network's computation (51 % with ResNet-50), and the rest grows with the
# input size: both are too slow on a CPU. On BCCD torchvision's FCOS with MobileNetV2 reached the same AP with
# width 96, two convolutions and a cosine schedule in under a third of the time.
_FOR_CPUS = {
    "fpn_channels": Change(96, "a narrow pyramid, since it is the input of the head, which takes most time"),
    "head_channels": Change(96, "the cost of the head grows with the square of its width"),
    "head_convs": Change(2, "half the papers' depth, for the same reason"),
    "short_side": Change(320, "a sixth of the pixels of 800"),
    "view_size": Change(532, "the papers' ratio of 1333 : 800 at this size"),
    "freeze_stages": Change(
        0, "a small backbone is better trained completely (BCCD: +0.7 AP after 6 of 12 epochs)"
    ),
    "quality": Change("iou", "ranks boxes by localization quality; AdelaiDet gains 0.7 AP"),
    "distance_init": Change(
        4.0, "boxes start with a realistic size, which saves time in short training runs"
    ),
    "optimizer": Change("adamw", "needs no tuning of the learning rate for each backbone"),
    "lr_base": Change(0.001, "for AdamW with batch size 8"),
    "lr_backbone": Change(
        0.1, "the full learning rate would spoil pretrained weights (VOC07, 300 steps: AP50 3.5 to 12.2)"
    ),
    "head_init": Change("kaiming", "0.01 is too small for AdamW (with the above: AP50 20.4)"),
    "weight_decay": Change(0.05, "AdamW's decay is decoupled from the gradient and needs a larger value"),
    "grad_clip": Change(10.0, "stabilizes the first steps"),
    "lr_policy": Change("cosine", "needs no milestones for any training length"),
    "warmup_iter": Change(0.05, "a short training run may have fewer than 500 iterations"),
    "ema_decay": Change(0.99, "averages about the last hundred steps: small batches are noisy"),
    "nbatch_train": Change(8, "more steps on small data sets"),
    "nbatch_eval": Change(8, "fits into little memory"),
}

ALL_PRESETS: dict[str, Preset] = {
    "fcos_r50": Preset("the improved recipe of the second paper with ResNet-50: the defaults", {}),
    "fcos_r18": Preset(
        "the same with ResNet-18, for small GPUs",
        {"backbone": Change("resnet18", "11 instead of 24 million parameters")},
    ),
    "fcos_r101": Preset(
        "the same with ResNet-101, for higher accuracy",
        {"backbone": Change("resnet101", "43 instead of 24 million parameters")},
    ),
    "fcos_seed": Preset(
        "the detector of xytpai/fcos (the seed), without its bugs",
        {
            "quality": Change("none", "the seed ranks detections only by class score"),
            "box_loss": Change("iou", "the seed's -log(IoU)"),
            "box_activation": Change(
                "exp", "as in the seed, but times the stride of the level, not its fixed factors 32 to 512"
            ),
            "head_norm": Change("none", "the seed's towers have no normalization"),
            "fpn_extra_from": Change("c5", "the seed makes P6 from C5"),
            "view_size": Change(1025, "the seed's longest side"),
            "short_side": Change(None, "the seed scales the longest side and ignores the shorter"),
            "grad_clip": Change(3.0, "as in the seed; without normalization, the first steps need it"),
        },
    ),
    "fcos_lite0": Preset(
        "a small model for CPUs with EfficientNet-Lite0",
        {
            "backbone": Change("tf_efficientnet_lite0", "made for CPUs: no squeeze-excite, ReLU6"),
            **_FOR_CPUS,
        },
    ),
    "fcos_mobilenetv2": Preset(
        "a small model for CPUs with MobileNetV2",
        {"backbone": Change("mobilenetv2_100", "the backbone of most CPU detectors"), **_FOR_CPUS},
    ),
}

PRESETS: dict[str, dict[str, Any]] = {
    name: {key: change.value for key, change in preset.changes.items()}
    for name, preset in ALL_PRESETS.items()
}
