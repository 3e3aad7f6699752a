"""Every setting of a training, as one flat model: `train.json`, the seed's keys as they are.

A setting's default, unit and meaning stand here and nowhere else; `fcos config` prints them.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from fcos.config.conventions import ThresholdOn
from fcos.config.presets import PRESETS
from fcos.format_names import FORMAT_NAMES

if TYPE_CHECKING:
    DataFormat = str
else:
    DataFormat = Literal[("auto", *FORMAT_NAMES)]

# The seed's spellings, taken for ever as if the setting itself stood there.
ALIASES = {"epoches": "epochs", "eval_epoches": "eval_epochs"}


# The first setting of each group of `TrainConfig`, for `fcos config`.
GROUPS = {
    "root_train": "Data",
    "run_folder": "Run",
    "model": "Model",
    "view_size": "Images",
    "epochs": "Optimisation",
    "eval_epochs": "Evaluation and prediction",
}


def setting(default: Any, meaning: str, *, unit: str = "", **limits: Any) -> Any:
    """A field with its meaning (and unit) for `fcos config`."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit}, **limits)


class TrainConfig(BaseModel):
    """All settings, resolved: `load_config` returns it. Paths are absolute."""

    # strict: "false" or 12.0 in a file is a slip of the pen, and a guess would hide it
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    # Data
    root_train: str = setting("", "folder of the training images")
    list_train: str = setting("", "training annotations: a list, COCO JSON, VOC or YOLO source")
    root_eval: str = setting("", "folder of the evaluation images")
    list_eval: str = setting("", "evaluation annotations; without them nothing is measured")
    name_file: str = setting("", "class names, one per line, first line 'background'")
    data_format: DataFormat = setting("auto", "format of the annotations")
    classes: int | None = setting(
        None, "number of classes without background, checked against the names", ge=1
    )
    skip_invalid: bool = setting(False, "leave broken images and impossible boxes out instead of refusing")

    # Run
    run_folder: str = setting("", "where the run is kept; empty: runs/<name of the config file>")
    load: bool = setting(False, "resume the run in run_folder exactly where it stopped")
    save: bool = setting(True, "write checkpoints")
    save_steps: int = setting(
        500, "write last.ckpt every so many steps, besides every epoch", unit="steps", ge=1
    )
    seed: int = setting(0, "seed of initial weights, data order and augmentation", ge=0)
    device: list[int] | Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "where to compute; the numbers are those of GPUs"
    )
    num_processes: int = setting(1, "processes to start with device cpu", ge=1)
    num_workers: int = setting(2, "loader processes of each device", ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "number format of forward and backward")
    compile: bool = setting(False, "torch.compile the network for training")
    channels_last: bool = setting(True, "memory order of the images; results differ by rounding only")
    activation_checkpointing: bool = setting(
        False, "compute activations again in the backward pass: less memory, more time, the same numbers"
    )
    tensorboard: bool = setting(True, "write TensorBoard files")

    # Model
    model: str = setting("fcos_r50", "preset, see `fcos config --presets`")
    backbone: str = setting("resnet50", "timm model with features at strides 8, 16, 32")
    pretrain: bool | str = setting(
        True,
        "start from ImageNet weights of the backbone (true), a file of such, a detector (any file that "
        "`fcos info` knows), torchvision's COCO weights (coco), or random weights (false)",
    )
    backbone_channels: list[int] | None = setting(
        None, "widths of stem and four stages, for a ResNet of another width (of bottlenecks the inner one)"
    )
    stride_in_1x1: bool = setting(
        False, "bottlenecks of a ResNet step in their first convolution, as Caffe's ImageNet weights want"
    )
    pixel_mean: list[float] | None = setting(
        None, "mean of red, green, blue in 0..255; null: what the backbone's ImageNet weights want"
    )
    pixel_std: list[float] | None = setting(
        None, "standard deviation of red, green, blue in 0..255; null: as for pixel_mean"
    )
    rules: Literal["fcos", "official", "adelaidet", "detectron2", "mmdetection", "torchvision"] = setting(
        "fcos",
        "the code base whose conventions of resizing, points, targets, losses and detections are followed",
    )
    freeze_bn: bool = setting(True, "batch norm of the backbone keeps its ImageNet statistics and weights")
    freeze_stages: int = setting(
        1, "stem and first N stages of the backbone are not trained; 0: all are", ge=0, le=4
    )
    fpn_channels: int = setting(256, "width of the feature pyramid", ge=1)
    fpn_extra_from: Literal["p5", "c5"] = setting("p5", "P6 is made from P5 (papers) or C5 (seed)")
    strides: list[int] = setting(
        [8, 16, 32, 64, 128], "strides of the levels; the first are 8, 16, 32", unit="pixels"
    )
    regress_ranges: list[float] = setting(
        [64.0, 128.0, 256.0, 512.0], "largest distance that each level but the last regresses", unit="pixels"
    )
    head_channels: int = setting(256, "width of the head towers", ge=1)
    head_convs: int = setting(4, "convolutions in each tower", ge=0)
    head_conv: Literal["plain", "separable"] = setting("plain", "3x3 convolutions, or depthwise 5x5 and 1x1")
    head_norm: Literal["gn", "bn", "bn_per_level", "none"] = setting("gn", "normalisation in the towers")
    box_activation: Literal["relu", "exp"] = setting("relu", "how the box branch becomes positive")
    normalize_targets: bool = setting(True, "the box branch regresses in units of the level's stride")
    head_init: Literal["normal", "kaiming"] = setting(
        "normal",
        "fresh weights of the towers: of standard deviation 0.01 (papers), or by their number of inputs",
    )
    distance_init: float = setting(
        0.0,
        "distance that a fresh box branch predicts (papers: 0; more starts small trainings faster)",
        unit="strides",
        ge=0,
    )
    assigner: Literal["static", "atss", "simota", "tal", "dsla"] = setting(
        "static", "which points learn which box: by place and size (static), or by what is predicted there"
    )
    static_start: float = setting(
        0.0, "first part of the training in which the static assigner is used", ge=0, le=1
    )
    center_sampling: bool = setting(True, "only points near a box's centre are positive")
    center_radius: float = setting(1.5, "how near, in strides of the level", unit="strides", gt=0)
    quality: Literal["centerness", "iou", "none"] = setting("centerness", "what the quality branch predicts")
    quality_tower: Literal["box", "classification"] = setting("box", "tower that the quality branch reads")
    box_loss: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = setting("giou", "loss of the boxes")
    box_loss_weight: float = setting(1.0, "factor of the box loss", gt=0)
    class_loss: Literal["focal", "qfl", "vfl"] = setting(
        "focal", "loss of the classes: focal, quality focal, varifocal"
    )
    class_target: Literal["one", "iou"] = setting(
        "one", "wanted class score of an assigned point: 1, or the IoU of the box that it predicts"
    )
    focal_alpha: float = setting(
        0.25, "weight of positives in the focal loss, of background in the varifocal loss", ge=0, le=1
    )
    focal_gamma: float = setting(2.0, "focusing of the class loss", ge=0)

    # Images
    view_size: int = setting(1333, "longest side after resizing (the seed's was 1025)", unit="pixels", ge=32)
    short_side: int | None = setting(
        800,
        "shorter side after resizing where view_size allows; null: scale the longest to view_size",
        unit="pixels",
        ge=32,
    )
    img_scale_min: float = setting(1.0, "training scales images at random in [img_scale_min, 1]", gt=0, le=1)
    reduced_decode: bool = setting(
        True, "training decodes large JPEGs at a half, quarter or eighth of their sides where that is enough"
    )
    horizontal_flip: bool = setting(True, "training mirrors half of the images; false for text and digits")
    augmentation: bool | Literal["color", "standard", "strong", "overhead"] = setting(
        False,
        "random changes of training images; true is standard; overhead is for images without up and down",
    )
    boxarea_th: float = setting(
        0.0, "training leaves out boxes smaller than this after resizing", unit="pixels^2", ge=0
    )

    # Optimisation
    epochs: int = setting(12, "passes over the training data", ge=1)
    nbatch_train: int = setting(16, "images of one optimizer step, over all devices", unit="images", ge=1)
    micro_batch: int | None = setting(
        None, "images of one forward pass on one device; smaller than its share: gradients accumulate", ge=1
    )
    nbatch_eval: int = setting(16, "images of an evaluation batch, over all devices", unit="images", ge=1)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "optimizer")
    lr_base: float = setting(
        0.01, "learning rate; without it the preset's, in proportion to nbatch_train", gt=0
    )
    lr_backbone: float = setting(
        1.0, "factor of the learning rate for the backbone, whose weights are trained already", gt=0, le=1
    )
    lr_policy: Literal["step", "cosine"] = setting("step", "how the learning rate falls")
    lr_gamma: float = setting(0.1, "factor at each entry of lr_schedule", gt=0, le=1)
    lr_schedule: list[float] = setting(
        [2 / 3, 8 / 9], "when the rate falls: iterations, or below 1 fractions of the training"
    )
    warmup_iter: float = setting(
        500.0, "iterations of linear warm-up, or below 1 a fraction of the training", ge=0
    )
    momentum: float = setting(0.9, "momentum of SGD", ge=0, lt=1)
    weight_decay: float = setting(1e-4, "weight decay; none on norms and biases", ge=0)
    grad_clip: float = setting(0.0, "largest norm of the gradient; 0: no limit", ge=0)
    ema_decay: float = setting(
        0.0, "decay of the averaged weights that are evaluated; 0: no averaging", ge=0, lt=1
    )

    # Evaluation and prediction
    eval_epochs: int = setting(1, "evaluate every so many epochs and after the last", unit="epochs", ge=1)
    score_threshold: float = setting(0.05, "score that a candidate must exceed", ge=0, le=1)
    threshold_on: ThresholdOn = setting(
        "class", "what must exceed it: class score, class score times quality, or the final score"
    )
    nms_iou: float = setting(
        0.6, "overlap above which the lower of two detections of a class goes", ge=0, le=1
    )
    agnostic_nms: bool = setting(False, "NMS over all classes together: an object gets one box")
    candidates_per_level: int = setting(1000, "best candidates of each level that enter NMS", ge=1)
    detections_per_image: int = setting(100, "detections kept of an image", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, values: Any) -> Any:
        """The seed's spellings, from Python and from older checkpoints."""
        if not isinstance(values, Mapping):
            return values
        return {
            key if values.get(ALIASES.get(key, key), value) != value else ALIASES.get(key, key): value
            for key, value in values.items()
        }

    @property
    def epoches(self) -> int:
        """`epochs`, as the seed spells it."""
        return self.epochs

    @property
    def eval_epoches(self) -> int:
        """`eval_epochs`, as the seed spells it."""
        return self.eval_epochs

    def origin(self, key: str) -> str:
        """Where a value was given: "default", "preset fcos_r18", "file train.json, line 3" and so on."""
        return self._origins.get(ALIASES.get(key, key), "default")

    def __eq__(self, other: object) -> bool:
        """Equal settings, wherever they were given."""
        return isinstance(other, TrainConfig) and self.model_dump() == other.model_dump()


def expects(key: str) -> str:
    """The values that a setting takes, in words: "a whole number, at least 1, or null"."""
    field = TrainConfig.model_fields[key]
    is_union = get_origin(field.annotation) in (Union, types.UnionType)
    kinds = get_args(field.annotation) if is_union else (field.annotation,)
    names = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = "".join(
        f", {words} {getattr(limit, name)}"
        for limit in field.metadata
        for name, words in names.items()
        if hasattr(limit, name)
    )
    described = [_kind_in_words(kind) + (limits if kind in (int, float) else "") for kind in kinds]
    return (", or " if limits else " or ").join(described)


def choices(key: str) -> list[str]:
    """The words that a setting takes, as one writes them in train.json; none where it takes other values."""
    if key == "model":
        return [f'"{name}"' for name in PRESETS]
    return re.findall(r'"\w+"|\b(?:true|false|null)\b', expects(key))


def unit(key: str) -> str:
    """The unit of a setting; empty where it has none."""
    extra = TrainConfig.model_fields[key].json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def _kind_in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(kind))
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "null",
        list[int]: "a list of whole numbers",
        list[float]: "a list of numbers",
    }
    return words[kind]
