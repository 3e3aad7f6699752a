"""The exported graph against the network and `PostProcess`, before it becomes a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fcos.config import TrainConfig, load_config
from fcos.config.presets import PRESETS
from fcos.export.graph import DetectionGraph, baked
from fcos.export.suppress import moved_apart, suppress
from fcos.model.build import build_model, build_postprocess
from fcos.model.fcos import FCOS
from fcos.model.postprocess import ImageDetections, PostProcess
from fcos.weights.load import load_model

VECTORS = [
    *("adelaidet_r50_1x", "adelaidet_r50_1x_iou", "detectron2_r50", "mmdet_r50_caffe"),
    *("mmdet_r50_caffe_tricks", "official_r50_imprv", "torchvision_r50"),
]
TOLERANCE = 1e-3  # pixels; folded batch norm and boxes moved apart round differently


class Small(NamedTuple):
    model: FCOS
    config: TrainConfig


def small(model: str, **changes: Any) -> Small:
    """A preset at a narrow width with random weights that find three classes everywhere."""
    narrow = {"fpn_channels": 32, "head_channels": 32, "head_convs": 1}
    config = load_config({"model": model, "list_train": "none", **narrow, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(config, 3).eval()
        torch.nn.init.normal_(network.head.logits.weight, std=0.3)
        torch.nn.init.constant_(network.head.logits.bias, -1.0)
    return Small(network, config)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two images of different sizes in one padding."""
    images = torch.randint(0, 256, (2, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    return images.to(torch.uint8), torch.tensor([[96, 100], [70, 128]]), torch.tensor([[192, 200], [70, 128]])


@torch.no_grad()
def in_pytorch(model: FCOS, postprocess: PostProcess) -> list[ImageDetections]:
    images, sizes, original = batch()
    output = model(images, sizes)
    return postprocess(output, model.grid((images.shape[2], images.shape[3])), sizes, original)


@torch.no_grad()
def in_graph(model: FCOS, postprocess: PostProcess, torchvision_nms: bool) -> list[ImageDetections]:
    boxes, scores, labels, image = DetectionGraph(model, postprocess, torchvision_nms=torchvision_nms)(
        *batch()
    )
    assert image.tolist() == sorted(image.tolist())
    return [ImageDetections(boxes[image == i], scores[image == i], labels[image == i]) for i in (0, 1)]


def assert_same(found: list[ImageDetections], wanted: list[ImageDetections]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert len(other.scores) > 0
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=TOLERANCE)
        assert one.labels.tolist() == other.labels.tolist()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_the_same_as_a_graph(preset: str) -> None:
    it = small(preset)
    postprocess = build_postprocess(it.config)
    wanted = in_pytorch(it.model, postprocess)
    for torchvision_nms in (False, True):
        assert_same(in_graph(it.model, postprocess, torchvision_nms), wanted)


@pytest.mark.parametrize("name", VECTORS)
def test_weights_of_every_code_base_keep_their_rules_as_a_graph(
    vectors: Callable[[str], Path], name: str
) -> None:
    it = load_model(vectors(name) / "state_dict.pth")
    # low thresholds and few candidates: the limits of the level and of the image are both reached
    postprocess = replace(
        build_postprocess(it.config), score_threshold=0.01, candidates_per_level=40, detections_per_image=50
    )
    wanted = in_pytorch(it.model, postprocess)
    for torchvision_nms in (False, True):
        found = in_graph(it.model, postprocess, torchvision_nms)
        if postprocess.point_order:  # torch leaves the order of the best candidates of a level open
            found, wanted = ([by_score(image) for image in images] for images in (found, wanted))
        assert_same(found, wanted)


def by_score(found: ImageDetections) -> ImageDetections:
    order = found.scores.argsort(descending=True, stable=True)
    return ImageDetections(found.boxes_xyxy[order], found.scores[order], found.labels[order])


@pytest.mark.parametrize(
    "rule",
    [
        *({"threshold_on": word} for word in ("class", "product", "score")),
        *({"clip": word} for word in ("resized", "original", "after_nms")),
        {"score": "product"},
        {"rank_by": "class"},
        {"keep_empty": True},
        {"keep_ties": True, "detections_per_image": 7},
        {"inclusive_boxes": True, "point_order": True},
        {"candidates_per_level": 5},
        {"nms_iou": 0.3},
        {"agnostic_nms": True, "nms_iou": 0.4},
        {"agnostic_nms": True, "inclusive_boxes": True, "point_order": True},
    ],
    ids=str,
)
def test_every_rule_of_detection_is_in_the_graph(rule: dict[str, Any]) -> None:
    it = small("fcos_r18", quality="iou")
    postprocess = replace(PostProcess(score_threshold=0.3), **rule)
    wanted = in_pytorch(it.model, postprocess)
    for torchvision_nms in (False, True):
        assert_same(in_graph(it.model, postprocess, torchvision_nms), wanted)


def test_equal_scores_at_the_limit_all_stay_where_the_rules_say_so() -> None:
    it = small("fcos_r18", quality="none")
    torch.nn.init.zeros_(it.model.head.logits.weight)  # every score is the same
    torch.nn.init.constant_(it.model.head.distances.bias, 0.25)  # small boxes that do not overlap
    torch.nn.init.zeros_(it.model.head.distances.weight)
    postprocess = PostProcess(detections_per_image=5, keep_ties=True)
    wanted = [len(image.scores) for image in in_pytorch(it.model, postprocess)]
    assert wanted[0] > 100
    for torchvision_nms in (False, True):
        found = in_graph(it.model, postprocess, torchvision_nms)
        assert [len(image.scores) for image in found] == wanted


def test_baking_folds_batch_norm_and_padding_into_plain_convolutions() -> None:
    it = small("fcos_lite0")
    plain = baked(it.model)
    kinds = {type(module).__name__ for module in plain.backbone.modules()}
    assert kinds & {"FoldedConv2d", "FoldedNorm", "Conv2dSame", "BatchNormAct2d"} == set()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for found, wanted in zip(plain.backbone(images), it.model.backbone(images), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_boxes_of_two_classes_never_overlap_after_they_are_moved_apart() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 20.0]] * 7])
    moved = moved_apart(boxes, torch.arange(7)[None], 7)[0]
    for i in range(7):
        for j in range(i):
            apart = (moved[i, :2] >= moved[j, 2:]).any() or (moved[j, :2] >= moved[i, 2:]).any()
            assert apart, (i, j)
    assert (moved[:, 2:] - moved[:, :2]).tolist() == [[10.0, 20.0]] * 7


def test_suppression_goes_image_by_image_and_leaves_out_what_is_not_there() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    scores = torch.tensor([[0.5, 0.9, -1.0], [0.8, 0.2, 0.9]])
    assert suppress(torch.stack([boxes, boxes]), scores, 0.5, 10).tolist() == [[0, 1], [1, 2], [1, 0]]
    assert suppress(torch.stack([boxes, boxes]), scores, 0.5, 1).tolist() == [[0, 1], [1, 2]]
