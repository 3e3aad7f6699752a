"""Every setting of training, as one flat model: `train.json`, with the keys of xytpai/fcos unchanged.

This is the only place with a setting's default, unit and meaning; `fcos config` prints them.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PrivateAttr, model_validator

from fcos.config.conventions import ThresholdOn
from fcos.format_names import FORMAT_NAMES

if TYPE_CHECKING:
    DataFormat = str
else:
    DataFormat = Literal[("auto", *FORMAT_NAMES)]

# The spellings of xytpai/fcos, accepted permanently.
ALIASES = {"epoches": "epochs", "eval_epoches": "eval_epochs"}


# The first setting of each group of `TrainConfig`, for `fcos config`.
GROUPS = {
    "root_train": "Data",
    "run_folder": "Run",
    "model": "Model",
    "view_size": "Images",
    "epochs": "Optimization",
    "eval_epochs": "Evaluation and prediction",
}


def setting(default: Any, meaning: str, *, unit: str = "", **limits: Any) -> Any:
    """A field with the description (and unit) that `fcos config` prints."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit}, **limits)


class TrainConfig(BaseModel):
    """All settings, resolved: `load_config` returns it. Paths are absolute."""

    # strict: "false" or 12.0 in a file is a mistake, and converting it silently would hide it
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    # Data
    root_train: str = setting("", "folder of the training images")
    list_train: str = setting("", "training annotations: a list, COCO JSON, VOC or YOLO source")
    root_eval: str = setting("", "folder of the evaluation images")
    list_eval: str = setting("", "evaluation annotations; empty: no evaluation")
    name_file: str = setting("", "class names, one per line, the first 'background'")
    data_format: DataFormat = setting("auto", "format of the annotations")
    classes: int | None = setting(
        None, "number of classes without background, checked against the names", ge=1
    )
    skip_invalid: bool = setting(False, "skip broken images and invalid boxes instead of raising an error")

    # Run
    run_folder: str = setting(
        "", "folder of the run, relative to the working directory; empty: runs/<name of the config file>"
    )
    load: bool = setting(False, "resume the run in run_folder exactly where it stopped")
    save: bool = setting(True, "write checkpoints")
    save_steps: int = setting(
        500, "also write last.ckpt every N steps, not only after each epoch", unit="steps", ge=1
    )
    seed: int = setting(0, "seed of initial weights, data order and augmentation", ge=0)
    device: list[int] | Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "device to run on; auto: all GPUs of this machine, or else the CPU; or a list of GPU numbers"
    )
    num_processes: int = setting(1, "number of processes with device=cpu", ge=1)
    num_workers: int = setting(2, "data loader processes per device", ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "precision of the forward and backward pass")
    compile: bool = setting(False, "torch.compile the network for training")
    channels_last: bool = setting(True, "channels-last memory format; results differ only by rounding")
    activation_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, slower, same results"
    )
    tensorboard: bool = setting(True, "write TensorBoard files")
    loggers: list[Literal["wandb", "mlflow"]] = setting(
        [], "also log to Weights & Biases (wandb) and MLflow, configured by their environment variables"
    )

    # Model
    model: str = setting("fcos_r50", "preset, see `fcos config --presets`")
    backbone: str = setting("resnet50", "timm model with features at strides 8, 16 and 32")
    pretrain: bool | str = setting(
        True,
        "initial weights: ImageNet weights of the backbone (imagenet, true, or a file); a whole detector "
        "(everyday: included in this package; coco: torchvision's; or any file that `fcos info` reads); or "
        "random (false)",
    )
    backbone_channels: list[int] | None = setting(
        None,
        "channels of stem and four stages, for a ResNet of non-standard width (bottlenecks: inner width)",
    )
    stride_in_1x1: bool = setting(
        False,
        "put the stride of ResNet bottlenecks in the first 1x1 convolution, as for Caffe's ImageNet weights",
    )
    pixel_mean: list[float] | None = setting(
        None, "mean of red, green, blue in 0..255; null: as for the backbone's ImageNet weights"
    )
    pixel_std: list[float] | None = setting(
        None, "standard deviation of red, green, blue in 0..255; null: as pixel_mean"
    )
    rules: Literal["fcos", "official", "adelaidet", "detectron2", "mmdetection", "torchvision"] = setting(
        "fcos",
        "code base whose conventions for resizing, points, targets, losses and post-processing are used",
    )
    freeze_bn: bool = setting(True, "freeze the statistics and weights of the backbone's batch norm")
    freeze_stages: int = setting(
        1, "freeze the stem and the first N stages of the backbone; 0: train all", ge=0, le=4
    )
    fpn_channels: int = setting(256, "width of the feature pyramid", ge=1)
    fpn_extra_from: Literal["p5", "c5"] = setting("p5", "input of P6: P5 (papers) or C5 (xytpai/fcos)")
    strides: list[int] = setting(
        [8, 16, 32, 64, 128],
        "stride of each level, from 8 up, or from 4 (small objects; slow)",
        unit="pixels",
    )
    regress_ranges: list[float] = setting(
        [64.0, 128.0, 256.0, 512.0], "maximum distance regressed on each level except the last", unit="pixels"
    )
    head_channels: int = setting(256, "width of the head towers", ge=1)
    head_convs: int = setting(4, "convolutions in each tower", ge=0)
    head_conv: Literal["plain", "separable"] = setting(
        "plain", "3x3 convolutions (plain), or depthwise 5x5 plus 1x1 (separable)"
    )
    head_norm: Literal["gn", "bn", "bn_per_level", "none"] = setting("gn", "normalization in the towers")
    box_activation: Literal["relu", "exp"] = setting("relu", "activation that makes distances positive")
    normalize_targets: bool = setting(True, "regress distances in units of the level's stride")
    head_init: Literal["normal", "kaiming"] = setting(
        "normal",
        "initialization of the towers: standard deviation 0.01, as in the papers (normal), or scaled by "
        "fan-in (kaiming)",
    )
    distance_init: float = setting(
        0.0,
        "distance predicted before training (papers: 0; a larger value helps in short training runs)",
        unit="strides",
        ge=0,
    )
    assigner: Literal["static", "atss", "simota", "tal", "dsla"] = setting(
        "static", "label assignment: by position and size (static), or a dynamic assigner"
    )
    static_start: float = setting(
        0.0, "use the static assigner for this first fraction of training", ge=0, le=1
    )
    center_sampling: bool = setting(True, "only points near a box's center are positive")
    center_radius: float = setting(
        1.5, "maximum distance from the center with center_sampling", unit="strides", gt=0
    )
    quality: Literal["centerness", "iou", "none"] = setting("centerness", "target of the quality branch")
    quality_tower: Literal["box", "classification"] = setting("box", "tower that the quality branch is on")
    box_loss: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = setting("giou", "box regression loss")
    box_loss_weight: float = setting(1.0, "weight of the box loss", gt=0)
    class_loss: Literal["focal", "qfl", "vfl"] = setting(
        "focal", "classification loss: focal, quality focal (qfl) or varifocal (vfl)"
    )
    class_target: Literal["one", "iou"] = setting(
        "one", "class target of a positive point: 1 (one), or the IoU of its predicted box (iou)"
    )
    focal_alpha: float = setting(
        0.25, "weight of positives in the focal loss, and of background in the varifocal loss", ge=0, le=1
    )
    focal_gamma: float = setting(2.0, "focusing parameter of the classification loss", ge=0)
    class_weights: dict[str, PositiveFloat] | None = setting(
        None, 'loss weights of objects by class, such as {"cat": 2}; others: 1'
    )

    # Images
    view_size: int = setting(1333, "longest side after resizing (xytpai/fcos: 1025)", unit="pixels", ge=32)
    short_side: int | None = setting(
        800,
        "shorter side after resizing, limited by view_size; null: scale the longest side to view_size",
        unit="pixels",
        ge=32,
    )
    img_scale_min: float = setting(
        1.0, "multi-scale training: random scale in [img_scale_min, 1]", gt=0, le=1
    )
    tile: int | None = setting(
        None,
        "for small objects in large images: side of the tiles to train on, and to predict on by default",
        unit="pixels before resizing",
        ge=32,
    )
    reduced_decode: bool = setting(
        True, "training decodes large JPEGs at 1/2, 1/4 or 1/8 of their size if that is enough"
    )
    horizontal_flip: bool = setting(True, "flip half of the training images; false for text and digits")
    augmentation: bool | Literal["color", "standard", "strong", "overhead"] = setting(
        False,
        "augmentation of training images; true means standard; overhead is for images without a fixed "
        "orientation (aerial, microscope)",
    )
    mosaic: float = setting(0.0, "fraction of training images that are mosaics of four", ge=0, le=1)
    mixup: float = setting(0.0, "fraction of training images that are the mean of two", ge=0, le=1)
    copy_paste: float = setting(
        0.0, "fraction of training images with objects of another image pasted in", ge=0, le=1
    )
    mix_until: float = setting(
        0.8, "mosaic, mixup and copy_paste end after this fraction of training", ge=0, le=1
    )
    boxarea_th: float = setting(
        0.0, "training ignores boxes smaller than this after resizing", unit="pixels^2", ge=0
    )

    repeat_threshold: float = setting(
        0.0,
        "class imbalance: repeat images of classes that occur in less than this fraction of the images "
        "(LVIS's repeat factor sampling); 0: off",
        ge=0,
        le=1,
    )

    # Optimization
    epochs: int = setting(12, "passes over the training data", ge=1)
    patience: int | None = setting(
        None,
        "early stopping: end training after this many evaluations without a better AP",
        unit="evaluations",
        ge=1,
    )
    time_limit: float | None = setting(
        None,
        "maximum time for training and evaluation; the schedule covers the steps that fit",
        unit="minutes",
        gt=0,
    )
    nbatch_train: int = setting(
        16,
        "batch size: images per optimizer step, over all devices (auto: the preset's, with micro_batch auto)",
        unit="images",
        ge=1,
    )
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = setting(
        None,
        "images per forward pass on one device; gradients are accumulated if this is less than its share of "
        "nbatch_train. null: the whole share; auto: as much of it as fits into GPU memory",
    )
    nbatch_eval: int = setting(16, "batch size of evaluation, over all devices", unit="images", ge=1)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "optimizer")
    lr_base: float = setting(
        0.01, "learning rate; default: the preset's, scaled linearly with nbatch_train", gt=0
    )
    lr_backbone: float = setting(1.0, "learning rate of the (pretrained) backbone, as a factor", gt=0, le=1)
    lr_policy: Literal["step", "cosine"] = setting("step", "learning rate schedule")
    lr_gamma: float = setting(0.1, "factor of the learning rate at each milestone of lr_schedule", gt=0, le=1)
    lr_schedule: list[float] = setting(
        [2 / 3, 8 / 9], "milestones of the step schedule: iterations, or fractions of training if below 1"
    )
    warmup_iter: float = setting(
        500.0, "length of the linear warm-up: iterations, or a fraction of training if below 1", ge=0
    )
    momentum: float = setting(0.9, "momentum of SGD", ge=0, lt=1)
    weight_decay: float = setting(1e-4, "weight decay; none on norms and biases", ge=0)
    grad_clip: float = setting(0.0, "gradient clipping: maximum norm; 0: off", ge=0)
    ema_decay: float = setting(
        0.0, "decay of the EMA weights, which are then evaluated and saved; 0: no EMA", ge=0, lt=1
    )

    # Evaluation and prediction
    eval_epochs: int = setting(1, "evaluate every N epochs, and after the last", unit="epochs", ge=1)
    score_threshold: float = setting(
        0.05,
        "minimum score of a candidate for NMS (not of shown detections: `fcos predict --score-threshold`)",
        ge=0,
        le=1,
    )
    threshold_on: ThresholdOn = setting(
        "class",
        "what score_threshold applies to: class score (class), class score times quality (product), or final "
        "score (score)",
    )
    nms_iou: float = setting(0.6, "IoU threshold of NMS", ge=0, le=1)
    agnostic_nms: bool = setting(False, "class-agnostic NMS: one box per object")
    candidates_per_level: int = setting(1000, "top-k candidates per level for NMS", ge=1)
    detections_per_image: int = setting(100, "maximum number of detections per image", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, values: Any) -> Any:
        """Translate the spellings of xytpai/fcos, from Python and from older checkpoints."""
        if not isinstance(values, Mapping):
            return values
        return {
            key if values.get(ALIASES.get(key, key), value) != value else ALIASES.get(key, key): value
            for key, value in values.items()
        }

    @property
    def mixes_images(self) -> bool:
        """Whether training images are mixed from several."""
        return max(self.mosaic, self.mixup, self.copy_paste) > 0

    def origin(self, key: str) -> str:
        """Where a value comes from: "default", "preset fcos_r18", "file train.json, line 3" and so on."""
        return self._origins.get(ALIASES.get(key, key), "default")

    def __eq__(self, other: object) -> bool:
        """Equal settings, whatever their origin."""
        return isinstance(other, TrainConfig) and self.model_dump() == other.model_dump()


def expects(key: str) -> str:
    """The values that a setting accepts, in words: "an integer, at least 1, or null"."""
    field = TrainConfig.model_fields[key]
    is_union = get_origin(field.annotation) in (Union, types.UnionType)
    kinds = get_args(field.annotation) if is_union else (field.annotation,)
    names = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    stated = [
        limit for kind in kinds for info in getattr(kind, "__metadata__", ()) for limit in info.metadata
    ]
    limits = "".join(
        f", {words} {getattr(limit, name)}"
        for limit in (*field.metadata, *stated)
        for name, words in names.items()
        if hasattr(limit, name)
    )
    kinds = tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds)
    described = [_kind_in_words(kind) + (limits if kind in (int, float) else "") for kind in kinds]
    return (", or " if limits else " or ").join(described)


def unit(key: str) -> str:
    """The unit of a setting; empty if it has none."""
    extra = TrainConfig.model_fields[key].json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def _kind_in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(kind))
    if get_origin(kind) is list and get_origin(get_args(kind)[0]) is Literal:
        return f"a list of {_kind_in_words(get_args(kind)[0])}"
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        types.NoneType: "null",
        list[int]: "a list of integers",
        list[float]: "a list of numbers",
        dict[str, PositiveFloat]: "names with numbers above 0",
    }
    return words[kind]
