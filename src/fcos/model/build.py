"""Build network, assigner, loss and post-processing from settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.model.assign import Assigner, StaticAssigner
from fcos.model.backbone import STRIDES, Backbone, pixel_statistics
from fcos.model.dynamic_assign import RULES, AtssAssigner, DynamicAssigner
from fcos.model.fcos import FCOS, FeaturePyramid, Head
from fcos.model.losses import FcosLoss
from fcos.model.postprocess import PostProcess


@torch.inference_mode(False)
@torch.enable_grad()
def build_model(config: TrainConfig, num_classes: int) -> FCOS:
    """The network with fresh weights; the same within `torch.no_grad` and `torch.inference_mode`."""
    backbone = Backbone(
        config.backbone,
        [stride for stride in config.strides if stride <= STRIDES[-1]],
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
        init=config.head_init,
    )
    usual_mean, usual_std = pixel_statistics(config.backbone)
    return FCOS(
        backbone,
        pyramid,
        head,
        config.strides,
        config.pixel_mean or usual_mean,
        config.pixel_std or usual_std,
        CONVENTIONS[config.rules].points,
    )


def build_assigner(config: TrainConfig) -> Assigner:
    """The assigner, from ground truth to targets."""
    if config.assigner in RULES:
        return DynamicAssigner(RULES[config.assigner])
    return build_fixed_assigner(config)


def build_fixed_assigner(config: TrainConfig) -> StaticAssigner | AtssAssigner:
    """The assigner; for one that needs predictions, all that it could choose: the points inside a box."""
    if config.assigner == "atss":
        return AtssAssigner(weight_boxes=config.quality == "centerness")
    if config.assigner == "static":
        return build_static_assigner(config)
    return StaticAssigner(regress_ranges=None, center_radius=None, weight_boxes=False)


def build_static_assigner(config: TrainConfig) -> StaticAssigner:
    """The papers' rule."""
    conventions = CONVENTIONS[config.rules]
    return StaticAssigner(
        tuple(map(float, config.regress_ranges)),
        config.center_radius if config.center_sampling else None,
        strict_ranges=conventions.strict_ranges,
        areas=conventions.areas,
        weight_boxes=conventions.weight_boxes and config.quality == "centerness",
    )


def build_loss(config: TrainConfig, class_names: Sequence[str] = ()) -> FcosLoss:
    """The loss, from output and targets; the names are only needed for `class_weights`."""
    conventions = CONVENTIONS[config.rules]
    weights = config.class_weights or {}
    return FcosLoss(
        config.quality,
        config.box_loss,
        config.class_loss,
        config.focal_alpha,
        config.focal_gamma,
        config.class_target == "iou",
        config.box_loss_weight,
        normalize_targets=config.normalize_targets,
        iou_plus_one=conventions.iou_plus_one,
        class_weights=tuple(weights.get(name, 1.0) for name in class_names) if weights else (),
    )


def build_postprocess(config: TrainConfig) -> PostProcess:
    """The post-processing, from output to detections."""
    conventions = CONVENTIONS[config.rules]
    return PostProcess(
        config.score_threshold,
        config.nms_iou,
        config.candidates_per_level,
        config.detections_per_image,
        threshold_on=config.threshold_on,
        score=conventions.score,
        rank_by=conventions.rank_by,
        clip=conventions.clip,
        keep_empty=conventions.keep_empty,
        inclusive_boxes=conventions.inclusive_boxes,
        point_order=conventions.point_order,
        keep_ties=conventions.keep_ties,
        agnostic_nms=config.agnostic_nms,
    )
