"""What weight files do not say: decided by their configuration or their name, else asked for, and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from fcos.cli import main
from fcos.errors import ConfigError, WeightsError
from fcos.weights.import_model import import_model
from fcos.weights.load import load_model
from fcos.weights.model_file import read_model
from fcos.weights.published.opening import open_state
from fcos.weights.published.read import read_published

IMAGENET_STD = [58.395, 57.12, 57.375]


@pytest.fixture
def rename(vectors: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A file of the vectors under another name, with other tensors and another `meta`."""

    def write(folder: str, name: str, change: Any = None, **more: Any) -> Path:
        tensors: dict[str, Any] = dict(open_state(vectors(folder) / "state_dict.pth").tensors)
        tensors = (change(tensors) or tensors) if change else tensors
        torch.save({"state_dict": tensors, **more}, tmp_path / name)
        return tmp_path / name

    return write


# MMDetection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_caffe"),
    [
        ("fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth", True),
        ("fcos_r50-caffe_fpn_gn-head_1x_coco.pth", True),
        ("fcos_r50_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.pth", False),
        ("fcos_r50_fpn_gn-head_1x_coco.pth", False),
    ],
)
def test_the_name_says_whose_imagenet_weights_mmdetection_took(
    name: str, is_caffe: bool, rename: Callable[..., Path]
) -> None:
    file = read_published(rename("mmdet_r50_caffe", name))
    assert file.card.settings["stride_in_1x1"] is is_caffe
    assert file.card.settings["pixel_std"] == ([1.0, 1.0, 1.0] if is_caffe else IMAGENET_STD)
    assert file.card.settings["pixel_mean"][0] == (122.7717 if is_caffe else 123.675)
    assert file._takes_bgr is is_caffe
    assert "judging by its name" in file.notes[0]


def test_what_neither_file_nor_name_says_is_asked_for_and_answered(
    rename: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = rename("mmdet_r50_caffe", "epoch_12.pth"), tmp_path / "model.safetensors"
    with pytest.raises(WeightsError, match=r"epoch_12\.pth does not say how to use it") as caught:
        load_model(path)
    assert "`fcos import epoch_12.pth -o model.safetensors channel_order=bgr`" in caught.value.fix
    stem = open_state(path).tensors["backbone.conv1.weight"]
    for order, std, is_caffe in (("rgb", IMAGENET_STD, False), ("bgr", [1.0, 1.0, 1.0], True)):
        card = import_model(path, out, changes=[f"channel_order={order}"], overwrite=True)
        assert (card.settings["pixel_std"], card.settings["stride_in_1x1"]) == (std, is_caffe)
        ours = read_model(out)[1]["backbone.body.conv1.weight"]
        assert torch.equal(ours, stem.flip(1) if is_caffe else stem)
        assert "channel_order" not in card.settings


def test_a_configuration_as_a_dict_is_read_too(rename: Callable[..., Path]) -> None:
    text = (
        "Config (path: fcos.py): {'model': {'data_preprocessor': {'mean': [0.0, 0.0, 0.0], 'std': "
        "[255.0, 255.0, 255.0], 'bgr_to_rgb': True}, 'backbone': {'style': 'pytorch'}, 'bbox_head': "
        "{'norm_on_bbox': True, 'centerness_on_reg': True}, 'test_cfg': {'nms': {'iou_threshold': 0.6}}}}"
    )
    file = read_published(rename("mmdet_r50_caffe", "epoch_12.pth", meta={"cfg": text}))
    settings = file.card.settings
    assert (settings["stride_in_1x1"], settings["pixel_std"]) == (False, [255.0, 255.0, 255.0])
    assert (settings["box_activation"], settings["quality_tower"], settings["nms_iou"]) == (
        "relu",
        "box",
        0.6,
    )
    assert not file._takes_bgr


def test_towers_without_norm_are_not_the_tricks(rename: Callable[..., Path]) -> None:
    def without_norm(tensors: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in tensors.items() if ".gn." not in key}
        for key in [
            key for key in kept if "_convs." in key and key.endswith(".conv.weight") and "bbox" in key
        ]:
            kept[key.replace("weight", "bias")] = torch.zeros(len(kept[key]))
        return kept

    path = rename("mmdet_r50_caffe", "fcos_r50_caffe_fpn_1x_coco.pth", without_norm)
    loaded = load_model(path)
    assert (loaded.config.head_norm, loaded.config.box_activation) == ("none", "exp")
    assert loaded.config.nms_iou == 0.5
    assert "read as the plain one" in loaded.notes[0]


# The others -----------------------------------------------------------------------------------------------


def test_info_tells_what_was_assumed_of_detectron2(rename: Callable[..., Path]) -> None:
    path = rename("detectron2_r50", "model_final.pth")
    content = json.loads(CliRunner().invoke(main, ["info", str(path), "--json"]).output)
    assert content["notes"][0] == (
        "assumed as in the default configuration of detectron2: bottlenecks have their stride in the 1x1 "
        "convolution, pixels are BGR, mean [103.53, 116.28, 123.675], std [1.0, 1.0, 1.0]; "
        "to change this, run `fcos import` with stride_in_1x1, channel_order, pixel_mean, pixel_std (both "
        "in the order RGB)"
    )


def test_the_order_of_channels_can_be_corrected_of_every_file(
    rename: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = rename("detectron2_r50", "model_final.pth"), tmp_path / "rgb.safetensors"
    import_model(path, out, changes=["channel_order=rgb", "stride_in_1x1=false"])
    stem = open_state(path).tensors["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(read_model(out)[1]["backbone.body.conv1.weight"], stem)
    again = tmp_path / "bgr.safetensors"
    import_model(out, again, changes=["channel_order=bgr"])
    assert torch.equal(read_model(again)[1]["backbone.body.conv1.weight"], stem.flip(1))
    with pytest.raises(ConfigError, match='"channel_order": "bgrr" is not a valid value'):
        import_model(path, tmp_path / "no.safetensors", changes=["channel_order=bgrr"])


def test_the_pixels_that_a_file_states_are_used(rename: Callable[..., Path]) -> None:
    def state(tensors: dict[str, Any]) -> None:
        tensors["pixel_mean"] = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        tensors["pixel_std"] = torch.tensor([57.375, 57.12, 58.395]).reshape(3, 1, 1)

    file = read_published(rename("adelaidet_r50_1x", "x.pth", state))
    assert file.card.settings["pixel_mean"] == [3.0, 2.0, 1.0]
    assert file.card.settings["pixel_std"] == pytest.approx(IMAGENET_STD)
    assert "pixel_mean and pixel_std are from the file" in file.notes[0]


@pytest.mark.parametrize("rules", ["adelaidet", "detectron2"])
def test_the_widest_resnext_of_detectron2_has_a_std_of_its_own(rules: str) -> None:
    from fcos.weights.published.layouts import LAYOUTS
    from fcos.weights.published.settings import profile

    layout = next(layout for layout in LAYOUTS if layout.rules == rules)
    wide = profile(layout, "resnext101_32x8d", {}, {}, "MS_X_101_32x8d_2x.pth").settings
    assert (wide["pixel_std"], wide["stride_in_1x1"]) == (IMAGENET_STD, False)
    assert profile(layout, "resnet101", {}, {}, "MS_R_101_2x.pth").settings["pixel_std"] == [1.0, 1.0, 1.0]


def test_towers_with_a_batch_norm_for_each_level_are_computed_so(rename: Callable[..., Path]) -> None:
    """AdelaiDet's FCOS-RT with batch norm: levels share convolutions, and not statistics."""
    generator = torch.Generator().manual_seed(0)

    def norm_of_levels(tensors: dict[str, Any]) -> dict[str, Any]:
        left_out = ("top_block", "scales.3", "scales.4")
        kept = {key: v for key, v in tensors.items() if not any(part in key for part in left_out)}
        for key in [key for key in kept if "_tower." in key and kept[key].ndim == 1]:
            tower, number, what = key.rsplit(".", 2)
            if int(number) % 3 == 1:
                size = len(kept.pop(key))
                for level in range(3):
                    start = f"{tower}.{number}.{level}"
                    kept[f"{start}.{what}"] = torch.rand(size, generator=generator)
                    kept[f"{start}.running_mean"] = torch.rand(size, generator=generator)
                    kept[f"{start}.running_var"] = torch.rand(size, generator=generator) + 0.5
        return kept

    path = rename("adelaidet_r50_1x", "FCOS_RT_MS_R_50_4x_syncbn_bn_head.pth", norm_of_levels)
    loaded, theirs = load_model(path), open_state(path).tensors
    assert loaded.config.head_norm == "bn_per_level"
    levels = [torch.rand(1, 32, 8 // 2**i, 8 // 2**i, generator=generator) for i in range(3)]
    with torch.inference_mode():
        ours = loaded.model.head(levels).logits
        expected = []
        for index, x in enumerate(levels):
            for block in range(4):
                start = f"proposal_generator.fcos_head.cls_tower.{3 * block}"
                norm = f"proposal_generator.fcos_head.cls_tower.{3 * block + 1}.{index}"
                x = torch.conv2d(x, theirs[f"{start}.weight"], theirs[f"{start}.bias"], padding=1)
                mean, variance, weight, bias = (
                    theirs[f"{norm}.{what}"] for what in ("running_mean", "running_var", "weight", "bias")
                )
                x = torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, 1e-5, False).relu()
            last = "proposal_generator.fcos_head.cls_logits"
            x = torch.conv2d(x, theirs[f"{last}.weight"], theirs[f"{last}.bias"], padding=1)
            expected.append(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(ours, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-4)


def test_a_resnet18_of_any_width_loads(tmp_path: Path) -> None:
    """As wide as usual (without a convolution in the first shortcut), or of another width (with one)."""
    from torchvision.models.resnet import BasicBlock

    for stem, width in ((4, 8), (64, 64)):
        first = BasicBlock(stem, width, downsample=None if stem == width else shortcut(stem, width)).eval()
        path = narrow_resnet18(tmp_path / f"FCOS_{stem}.pth", first, stem, width)
        body = load_model(path).model.backbone.body
        x = torch.rand(1, stem, 5, 5, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            torch.testing.assert_close(body.layer1[0](x), first(x), rtol=1e-4, atol=1e-5)


def shortcut(stem: int, width: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(stem, width, 1, bias=False), torch.nn.BatchNorm2d(width))


def narrow_resnet18(path: Path, first: torch.nn.Module, stem: int, width: int) -> Path:
    """A file of torchvision's FCOS with a narrow ResNet-18."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    body: Any = ResNet(BasicBlock, [2, 2, 2, 2])
    body.conv1 = torch.nn.Conv2d(3, stem, 7, 2, 3, bias=False)
    body.bn1 = torch.nn.BatchNorm2d(stem)
    before = stem
    for number, planes in enumerate((width, 16, 16, 32), start=1):
        stride = 1 if number == 1 else 2
        down = None if stride == 1 and before == planes else shortcut(before, planes)
        if down is not None:
            down[0].stride = (stride, stride)  # type: ignore[index]
        blocks = [BasicBlock(before, planes, stride, down), BasicBlock(planes, planes)]
        setattr(body, f"layer{number}", torch.nn.Sequential(*blocks))
        before = planes
    body.layer1[0] = first
    layers = {f"layer{number}": str(number - 2) for number in (2, 3, 4)}
    backbone = BackboneWithFPN(body, layers, [16, 16, 32], 32, extra_blocks=LastLevelP6P7(32, 32))
    torch.save(FCOS(backbone, 3).state_dict(), path)
    return path
