"""Settings to objects: the only place that knows both."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader

from fcos.backend import TorchBackend
from fcos.config import TrainConfig, expects
from fcos.config_rules import broken_rules
from fcos.data.annotations import Annotations
from fcos.data.batch import Batch, padded_size
from fcos.data.dataset import EvalDataset, TrainDataset
from fcos.data.loader import PADDING_MULTIPLE, build_loader
from fcos.data.sampler import ShardSampler, StreamSampler
from fcos.data.transforms import EvalTransform, TrainTransform, build_policy
from fcos.errors import ConfigError, WeightsError
from fcos.model.assign import StaticAssigner
from fcos.model.backbone import Backbone
from fcos.model.fcos import FCOS
from fcos.model.fpn import FeaturePyramid
from fcos.model.head import Head
from fcos.model.losses import FcosLoss
from fcos.model.postprocess import PostProcess
from fcos.model.pretrained import pixel_statistics
from fcos.model.published.opening import is_published
from fcos.model.published.read import read_published
from fcos.model.published.settings import ChannelOrder
from fcos.model.weights import GIVE, UPGRADE, ModelCard, check_fits, load_tensors, read_model
from fcos.rules import RULES

# More than any model needs; what a file asks for beyond it would only fill the memory.
MOST = {
    **{"view_size": 2**15, "short_side": 2**15, "fpn_channels": 2**14, "head_channels": 2**14},
    **{"head_convs": 64, "candidates_per_level": 10**6, "detections_per_image": 10**6},
}
MOST_LEVELS = 12

# The settings that a model file carries: enough to build the model, feed it and read its output.
MODEL_SETTINGS = (
    *("model", "backbone", "backbone_channels", "stride_in_1x1", "pixel_mean", "pixel_std"),
    *("fpn_channels", "fpn_extra_from", "strides", "regress_ranges"),
    *("head_channels", "head_convs", "head_conv", "head_norm", "box_activation", "normalize_targets"),
    *("quality", "quality_tower", "view_size", "short_side", "rules"),
    *("score_threshold", "threshold_on", "nms_iou", "agnostic_nms"),
    *("candidates_per_level", "detections_per_image"),
)


@torch.inference_mode(False)
@torch.enable_grad()
def build_model(config: TrainConfig, num_classes: int) -> FCOS:
    """The network with fresh weights; the same within `torch.no_grad` and `torch.inference_mode`."""
    backbone = Backbone(
        config.backbone,
        freeze_bn=config.freeze_bn,
        freeze_stages=config.freeze_stages,
        channels=config.backbone_channels,
        stride_in_1x1=config.stride_in_1x1,
    )
    pyramid = FeaturePyramid(
        backbone.channels, config.fpn_channels, len(config.strides), extra_from=config.fpn_extra_from
    )
    head = Head(
        config.fpn_channels,
        config.head_channels,
        num_classes,
        config.head_convs,
        config.strides,
        conv=config.head_conv,
        norm=config.head_norm,
        quality_tower=None if config.quality == "none" else config.quality_tower,
        box_activation=config.box_activation,
        normalize_targets=config.normalize_targets,
        distance_init=config.distance_init,
    )
    usual_mean, usual_std = pixel_statistics(config.backbone)
    return FCOS(
        backbone,
        pyramid,
        head,
        config.strides,
        config.pixel_mean or usual_mean,
        config.pixel_std or usual_std,
        RULES[config.rules].points,
    )


def build_assigner(config: TrainConfig) -> StaticAssigner:
    """Ground truth to targets."""
    radius = config.center_radius if config.center_sampling else None
    rules = RULES[config.rules]
    ranges = tuple(map(float, config.regress_ranges))
    return StaticAssigner(
        ranges,
        radius,
        strict_ranges=rules.strict_ranges,
        areas=rules.areas,
        weight_boxes=rules.weight_boxes and config.quality == "centerness",
    )


def build_loss(config: TrainConfig) -> FcosLoss:
    """Output and targets to losses."""
    rules = RULES[config.rules]
    return FcosLoss(
        config.quality,
        config.box_loss,
        config.focal_alpha,
        config.focal_gamma,
        normalize_targets=config.normalize_targets,
        iou_plus_one=rules.iou_plus_one,
    )


def build_postprocess(config: TrainConfig) -> PostProcess:
    """Output to detections."""
    rules = RULES[config.rules]
    return PostProcess(
        config.score_threshold,
        config.nms_iou,
        config.candidates_per_level,
        config.detections_per_image,
        threshold_on=config.threshold_on,
        score=rules.score,
        rank_by=rules.rank_by,
        clip=rules.clip,
        keep_empty=rules.keep_empty,
        inclusive_boxes=rules.inclusive_boxes,
        keep_ties=rules.keep_ties,
        agnostic_nms=config.agnostic_nms,
    )


def build_eval_transform(config: TrainConfig) -> EvalTransform:
    """Resizing for evaluation and prediction."""
    rules = RULES[config.rules]
    return EvalTransform(config.short_side, config.view_size, rules.size, rules.resize)


def build_train_transform(config: TrainConfig) -> TrainTransform:
    """Resizing and augmentation for training."""
    return TrainTransform(
        config.short_side,
        config.view_size,
        scale_min=config.img_scale_min,
        horizontal_flip=config.horizontal_flip,
        augment=build_policy(config.augmentation),
        min_area=config.boxarea_th,
        size=RULES[config.rules].size,
        method=RULES[config.rules].resize,
        reduced_decode=config.reduced_decode,
    )


def build_train_loader(
    config: TrainConfig, annotations: Annotations, *, micro_batch: int, rank: int, world: int, start_step: int
) -> DataLoader[Batch]:
    """Endless micro-batches of one device, from an optimizer step on."""
    dataset = TrainDataset(annotations, build_train_transform(config), config.seed, config.nbatch_train)
    is_wide = torch.from_numpy(annotations.sizes_hw[:, 1] > annotations.sizes_hw[:, 0])
    sampler = StreamSampler(is_wide, config.nbatch_train, micro_batch, config.seed, rank, world, start_step)
    return build_loader(dataset, sampler, config.num_workers, torch.cuda.is_available())


def build_eval_loader(
    config: TrainConfig, annotations: Annotations, batch_size: int, *, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """Every image once, over all devices; up to `batch_size` images of one padded size in a forward pass."""
    transform = build_eval_transform(config)
    dataset = EvalDataset(annotations, transform)
    padded_sizes = [
        padded_size([transform.resized_size((height, width))], PADDING_MULTIPLE) if height > 0 else None
        for height, width in annotations.sizes_hw.tolist()
    ]
    sampler = ShardSampler(len(annotations), batch_size, rank, world, kinds=padded_sizes)
    return build_loader(dataset, sampler, config.num_workers, torch.cuda.is_available())


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW; no weight decay on norms (AdelaiDet, detectron2) and biases (official)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr_base)
    return torch.optim.SGD(groups, lr=config.lr_base, momentum=config.momentum)


@dataclass(frozen=True)
class LoadedModel:
    """A model file, ready to use.

    Attributes:
        model: in evaluation mode, on the CPU.
        config: its settings.
        card: what else the file says.
        path: of the file.
        notes: what was assumed of a file of another code base.
    """

    model: FCOS
    config: TrainConfig
    card: ModelCard
    path: Path
    notes: tuple[str, ...] = ()

    @property
    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of red, green and blue, in 0..255."""
        return self.model.pixel_mean.flatten().tolist(), self.model.pixel_std.flatten().tolist()

    @property
    def num_parameters(self) -> int:
        """Of the network."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def with_agnostic_nms(self, agnostic_nms: bool) -> LoadedModel:
        """The same model with another setting `agnostic_nms`."""
        settings = {**self.card.settings, "agnostic_nms": agnostic_nms}
        config = self.config.model_copy(update={"agnostic_nms": agnostic_nms})
        return replace(self, config=config, card=replace(self.card, settings=settings))

    def backend(self, device: torch.device) -> TorchBackend:
        """What `Detector` detects with."""
        return TorchBackend(self.model.to(device), build_postprocess(self.config))


def model_file_of(source: Path) -> Path:
    """The model file of a run folder (the best one), or the file itself."""
    if not source.is_dir():
        return source
    for name in ("best.safetensors", "last.safetensors"):
        if (source / name).is_file():
            return source / name
    raise WeightsError(
        f"{source} holds no model",
        where="best.safetensors, last.safetensors",
        fix="give a run folder in which `fcos train` has finished an epoch, or a file of weights",
    )


def load_model(source: Path | str, channel_order: ChannelOrder | None = None) -> LoadedModel:
    """The model of a run folder, a model file, or a weight file of another code base.

    Args:
        source: of the model.
        channel_order: of the pixels that the network of the file takes, where it does not say so, or wrongly.

    Raises:
        WeightsError: it cannot be read, does not fit what it says about itself, or would have to run code.
    """
    path = model_file_of(Path(source))
    if not is_published(path):
        card, tensors = read_model(path)
        config = settings_of_card(card, path)
        check_fits(outline(config, len(card.class_names), path), tensors, path)
        model = build_model(config, len(card.class_names))
        if channel_order == "bgr":  # ours take RGB: the first convolution is turned round
            stem = next(key for key, value in tensors.items() if value.ndim == 4 and value.shape[1] == 3)
            tensors[stem] = tensors[stem].flip(1)
        load_tensors(model, tensors, path)
        return LoadedModel(model.eval(), config, card, path)

    file = read_published(path, channel_order)
    card = ModelCard(file.settings, file.class_names, file.category_ids, origin=file.origin)
    config = settings_of_card(card, path)
    tensors = file.tensors_for(outline(config, len(file.class_names), path).state_dict())
    model = build_model(config, len(file.class_names))
    # Not the file's, but the model's own: pixel statistics, and counters of batch norm.
    model.load_state_dict({**model.state_dict(), **{k: v for k, v in tensors.items() if not v.is_meta}})
    return LoadedModel(model.eval(), config, card, path, file.notes)


def outline(config: TrainConfig, num_classes: int, path: Path) -> FCOS:
    """The network without memory for its weights: a file may ask for any width, and this costs nothing.

    Raises:
        WeightsError: there is no such network.
    """
    # What is frozen makes no difference to the tensors, and is found by running the network.
    config = config.model_copy(update={"freeze_bn": False, "freeze_stages": 0})
    try:
        with torch.device("meta"):
            return build_model(config, num_classes)
    except ConfigError as error:
        raise WeightsError(error.what, where=str(path), fix=error.fix) from error
    except (RuntimeError, ValueError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise WeightsError(
            f"{path.name} has settings of which no network can be made: {str(error).splitlines()[0]}",
            where=str(path),
            fix=GIVE,
        ) from error


def settings_of_card(card: ModelCard, path: Path) -> TrainConfig:
    """The settings that a card carries, with the defaults of all others.

    Raises:
        WeightsError: settings that this version does not know, or values that are not possible.
    """
    if unknown := [key for key in card.settings if key not in MODEL_SETTINGS]:
        raise WeightsError(
            f"{path.name} has settings that this version of fcos does not know: {', '.join(unknown)}",
            where=str(path),
            fix=UPGRADE,
        )
    try:
        config = TrainConfig(**card.settings)
        problems = [broken.what for broken in broken_rules(config)]
    except ValidationError as error:
        keys = dict.fromkeys(str(detail["loc"][0]) for detail in error.errors())
        problems = [
            f'"{key}": {shorten(json.dumps(card.settings.get(key)), 100)} is not possible; it takes '
            f"{expects(key)}"
            for key in keys
        ]
    else:
        problems += [
            f'"{key}": {value} is more than {most}'
            for key, most in MOST.items()
            if (value := getattr(config, key)) is not None and value > most
        ]
        if len(config.strides) > MOST_LEVELS:
            problems.append(f'"strides" has {len(config.strides)} entries, more than {MOST_LEVELS}')
    if problems:
        raise WeightsError(
            f"{path.name} has settings that cannot be: {'; '.join(problems)}", where=str(path), fix=GIVE
        )
    return config
