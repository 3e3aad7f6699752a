"""Every setting of a training, as one flat model: `train.json`, the seed's keys as they are.

A setting's default, unit and meaning stand here and nowhere else; `fcos config` prints them. Values come
from four places, the later ones win: the default, the preset (`model`), the file, the command line.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from fcos.config.checks import DATA_PATHS, Broken, broken_rules, missing_paths, raise_all
from fcos.config.conventions import ThresholdOn
from fcos.config.file import COMMAND_LINE, Given, read_file, read_overrides
from fcos.config.other_tools import is_weight_file, nearest, settings_for, why_none
from fcos.config.presets import PRESETS
from fcos.errors import ConfigError
from fcos.files import without_part, write_text
from fcos.format_names import FORMAT_NAMES

if TYPE_CHECKING:
    DataFormat = str
else:
    DataFormat = Literal[("auto", *FORMAT_NAMES)]

# The seed's spellings, taken for ever as if the setting itself stood there.
ALIASES = {"epoches": "epochs", "eval_epoches": "eval_epochs"}

# What is often written where another word is meant.
WORDS_ELSEWHERE = {
    "gpu": '"cuda"',
    **dict.fromkeys(("true", "yes", "on"), "true"),
    **dict.fromkeys(("false", "no", "off"), "false"),
    **dict.fromkeys(("null", "none"), "null"),
}

# The first setting of each group of `TrainConfig`, for `fcos config`.
GROUPS = {
    "root_train": "Data",
    "run_folder": "Run",
    "model": "Model",
    "view_size": "Pictures",
    "epochs": "Optimisation",
    "eval_epochs": "Measuring and using",
}


def setting(default: Any, meaning: str, *, unit: str = "", **limits: Any) -> Any:
    """A field with its meaning (and unit) for `fcos config`."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit}, **limits)


class TrainConfig(BaseModel):
    """All settings, resolved: `load_config` makes it. Paths are absolute."""

    # strict: "false" or 12.0 in a file is a slip of the pen, and a guess would hide it
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    # Data
    root_train: str = setting("", "folder of the training images")
    list_train: str = setting("", "training annotations: a list, COCO JSON, VOC or YOLO source")
    root_eval: str = setting("", "folder of the evaluation images")
    list_eval: str = setting("", "evaluation annotations; without them nothing is measured")
    name_file: str = setting("", "class names, one a line, first line 'background'")
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
    distance_init: float = setting(
        0.0,
        "distance that a fresh box branch predicts (papers: 0; more starts small trainings faster)",
        unit="strides",
        ge=0,
    )
    center_sampling: bool = setting(True, "only points near a box's centre are positive")
    center_radius: float = setting(1.5, "how near, in strides of the level", unit="strides", gt=0)
    quality: Literal["centerness", "iou", "none"] = setting("centerness", "what the quality branch predicts")
    quality_tower: Literal["box", "classification"] = setting("box", "tower that the quality branch reads")
    box_loss: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = setting("giou", "loss of the boxes")
    focal_alpha: float = setting(0.25, "weight of positives in the focal loss", ge=0, le=1)
    focal_gamma: float = setting(2.0, "focusing of the focal loss", ge=0)

    # Pictures
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

    # Measuring and using
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


def load_config(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    origin: str = "dict",
) -> TrainConfig:
    """Settings from a train.json (or a dict, or nothing but defaults), with `key=value` overrides.

    Relative paths are looked for beside the config file, then in the working directory; those of a dict or
    the command line in the working directory.

    Args:
        source: where the settings come from.
        overrides: words of the command line.
        origin: what messages call a dict.

    Raises:
        ConfigError: one error that names everything that is wrong, each with file, line and remedy.
    """
    if source is None or isinstance(source, Mapping):
        folder = Path.cwd()
        entries = [Given(key, _plain(value), origin) for key, value in (source or {}).items()]
    else:
        source = Path(source).expanduser()
        folder, entries = source.parent.absolute(), read_file(source)

    problems: list[ConfigError] = []
    given = _settings(entries, folder, problems) | _overrides(overrides, problems)
    preset = _preset(given.get("model"), problems)
    values = PRESETS[preset] | {key: entry.value for key, entry in given.items()}
    values.setdefault("model", preset)
    scaled = _scale_rate(values, given)
    config = _validate(values, given, problems)
    if not config.run_folder:
        name = source.stem if isinstance(source, Path) else config.model
        config = config.model_copy(update={"run_folder": os.path.abspath(f"runs/{name}")})
    config._origins.update({key: f"preset {preset}" for key in PRESETS[preset]})
    config._origins.update({key: entry.where for key, entry in given.items()})
    config._origins.update(scaled)
    in_command = given.get("run_folder") and given["run_folder"].where.startswith(COMMAND_LINE)
    if isinstance(source, Path) and not in_command and _lies_in_run(source, config.run_folder):
        config = config.model_copy(update={"run_folder": str(folder)})  # moved or not
        config._origins["run_folder"] = f"file {source}, which lies in the run folder"
    if problems:  # alone they wait for the training: settings may be read where the data is not
        problems += missing_paths(config)
    raise_all(problems)
    return config


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides that are wrong whatever the train.json says; for a command that has yet to write it.

    Raises:
        ConfigError: names every key, value and path that is wrong.
    """
    problems: list[ConfigError] = []
    given = _overrides(overrides, problems)
    _preset(given.get("model"), problems)
    config = _values({key: entry.value for key, entry in given.items()}, given, problems)[0]
    config._origins.update({key: entry.where for key, entry in given.items()})
    raise_all([*problems, *missing_paths(config)])


def dump_config(config: TrainConfig, path: Path) -> None:
    """Write every setting, resolved; training from that file repeats the run."""
    settings = config.model_dump().items()
    lines = [f"    {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in settings]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


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


def _settings(entries: Iterable[Given], folder: Path, problems: list[ConfigError]) -> dict[str, Given]:
    """Entries of one source by the setting that they give; unknown and repeated ones become problems."""
    settings: dict[str, Given] = {}
    for entry in entries:
        key = ALIASES.get(entry.key, entry.key)
        if key not in TrainConfig.model_fields:
            problems += map(_unknown, _flattened(entry))
        elif key in settings and _is_repeated(entry, settings[key]):
            first = settings[key]
            same = f'"{entry.key}" is given twice'
            other = f'"{first.key}" and "{entry.key}" are the same setting'
            problems.append(
                ConfigError(
                    same if first.key == entry.key else other,
                    where=f"{first.where}; {entry.where}",
                    fix="keep one of them",
                )
            )
        else:
            settings[key] = entry._replace(value=_read_value(key, entry.value, folder))
    return settings


def _overrides(words: Sequence[str], problems: list[ConfigError]) -> dict[str, Given]:
    text_keys = {key for key, field in TrainConfig.model_fields.items() if field.annotation is str}
    return _settings(read_overrides(words, text_keys), Path.cwd(), problems)


def _lies_in_run(source: Path, run_folder: str) -> bool:
    """Whether a config file is that of a run: it lies in the run's folder, which it then names."""
    folder = source.parent
    return os.path.realpath(folder) == os.path.realpath(run_folder) or any(
        (folder / name).is_file() for name in ("last.ckpt", "metrics.jsonl")
    )


def _flattened(entry: Given) -> Iterator[Given]:
    """Keys within keys as other tools write them, {"SOLVER": {"BASE_LR": 0.01}}, as "SOLVER.BASE_LR"."""
    if not isinstance(entry.value, Mapping) or not entry.value:
        yield entry
        return
    for key, value in entry.value.items():
        yield from _flattened(entry._replace(key=f"{entry.key}.{key}", value=value))


def _is_repeated(entry: Given, first: Given) -> bool:
    """Whether a setting is given twice; in two spellings (epochs, epoches) with one value is once."""
    return entry.key == first.key or entry.value != first.value


def _unknown(entry: Given) -> ConfigError:
    """A key that is none of ours: what it is here where another tool has it, else what it resembles."""
    what = f'"{entry.key}" is not a setting'
    if ours := settings_for(entry.key):
        words = " and ".join(f'"{key}" ({_meaning(key)})' for key in ours)
        return ConfigError(what, where=entry.where, fix=f"here it is {words}")
    if why := why_none(entry.key):
        return ConfigError(what, where=entry.where, fix=f"remove it: there is none here; {why}")
    similar = nearest(entry.key, [*TrainConfig.model_fields, *ALIASES])
    fix = (
        f'did you mean "{ALIASES.get(similar, similar)}"?'
        if similar
        else "remove it; `fcos config` lists the settings"
    )
    return ConfigError(what, where=entry.where, fix=fix)


def _meaning(key: str) -> str:
    """What a setting is, without what its description says in brackets: the message has brackets already."""
    return re.sub(r" \([^()]*\)", "", TrainConfig.model_fields[key].description or "")


def _preset(entry: Given | None, problems: list[ConfigError]) -> str:
    """The name of the preset; an unknown one becomes a problem and the default one stands in for it."""
    default = str(TrainConfig.model_fields["model"].default)
    name = entry.value if entry else default
    if name in PRESETS:
        return str(name)
    assert entry is not None, "the default preset exists"
    similar = difflib.get_close_matches(str(name), PRESETS, n=1)
    hint = f'did you mean "{similar[0]}"? ' if similar else ""
    if is_weight_file(str(name)):
        hint = 'weights of FCOS to start from go into "pretrain" (those of other detectors do not fit). '
    problems.append(
        ConfigError(
            f'"model": {json.dumps(name)} is not a preset',
            where=entry.where,
            fix=f'{hint}There are {", ".join(PRESETS)}; a timm network goes into "backbone"',
        )
    )
    return default


def _scale_rate(values: dict[str, Any], given: Mapping[str, Given]) -> dict[str, str]:
    """Set a rate that nobody chose in proportion to the batch (arXiv 1706.02677); returns its origin."""
    batch = values.get("nbatch_train")
    if "lr_base" in given or "nbatch_train" not in given or type(batch) is not int or batch < 1:
        return {}
    usual = PRESETS[values["model"]]
    rate, usual_batch = (
        usual.get(key, TrainConfig.model_fields[key].default) for key in ("lr_base", "nbatch_train")
    )
    if batch == usual_batch:
        return {}
    values["lr_base"] = rate * batch / usual_batch
    return {"lr_base": f"in proportion to nbatch_train: {rate:g} for {usual_batch}"}


def _validate(values: dict[str, Any], given: Mapping[str, Given], problems: list[ConfigError]) -> TrainConfig:
    """Check each value, then the rules between those that are right; return what could be made of it."""
    config, wrong = _values(values, given, problems)
    for broken in broken_rules(config):
        if wrong.isdisjoint(broken.keys):
            problems.append(_as_error(broken, given))
    return config


def _values(
    values: dict[str, Any], given: Mapping[str, Given], problems: list[ConfigError]
) -> tuple[TrainConfig, set[str]]:
    """Check each value by itself; the settings without those that are wrong, and the keys of these."""
    try:
        return TrainConfig.model_validate(values), set()
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors()}
    problems += [_wrong_value(given[key]._replace(key=key)) for key in given if key in wrong]
    right = {key: value for key, value in values.items() if key not in wrong}
    return TrainConfig.model_validate(right), wrong


def _wrong_value(entry: Given) -> ConfigError:
    """What a setting was given, what it takes, and the nearest of its words."""
    taken, meaning = expects(entry.key), TrainConfig.model_fields[entry.key].description
    written = str(entry.value).lower()
    words = choices(entry.key)
    similar = difflib.get_close_matches(WORDS_ELSEWHERE.get(written, f'"{written}"'), words, n=1)
    hint = f"did you mean {similar[0]}? It takes" if similar and isinstance(entry.value, str) else "give"
    return ConfigError(
        f'"{entry.key}": {json.dumps(entry.value)} is not possible',
        where=entry.where,
        fix=f"{hint} {taken} ({meaning})",
    )


def _as_error(broken: Broken, given: Mapping[str, Given]) -> ConfigError:
    places = [given[key].where for key in broken.keys if key in given]
    return ConfigError(broken.what, where="; ".join(places) or ", ".join(broken.keys), fix=broken.fix)


def _plain(value: Any) -> Any:
    """JSON's kinds for what a Python caller may hand over instead."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _read_value(key: str, value: Any, folder: Path) -> Any:
    """A value as the model takes it: absolute paths, a list of one GPU for its number."""
    if key == "device":
        return _read_device(value)
    if not isinstance(value, str) or not value:
        return value
    if key in DATA_PATHS or (key == "pretrain" and value != "coco"):
        return _absolute(value, folder)
    # Runs are kept where one works, as every tool does, not beside a config file that may be shared.
    return _absolute(value, Path.cwd()) if key == "run_folder" else value


def _read_device(value: Any) -> Any:
    """GPU numbers as a list: 0, "0", "0,1" and "cuda:1" too, as other tools have them."""
    if type(value) is int:
        return [value]
    numbers = (
        re.fullmatch(r"(?:cuda:)?(\d+(?:,\d+)*)", value.replace(" ", "")) if isinstance(value, str) else None
    )
    return [int(number) for number in numbers[1].split(",")] if numbers else value


def _absolute(path: str, folder: Path) -> str:
    """The path beside the config file, or in the working directory when it exists only there."""
    beside, here = (str(base / Path(path).expanduser()) for base in (folder, Path.cwd()))
    only_here = os.path.exists(without_part(here)) and not os.path.exists(without_part(beside))
    return os.path.abspath(here if only_here else beside)
