from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcos.config import load_config
from fcos.cpu import winograd
from fcos.cpu.training import FoldedNorm, TrainedConv2d, for_training
from fcos.model.build import build_model
from fcos.model.fcos import FCOS
from fcos.train.recompute import recompute_activations

from ..model.test_backbone import randomize_norms

SMALL = {"pretrain": False, "fpn_channels": 16, "head_channels": 16, "head_convs": 1}


def make(**settings: Any) -> FCOS:
    torch.manual_seed(0)
    model = build_model(load_config({"backbone": "resnet18", **SMALL, **settings}), 3).train()
    randomize_norms(model)
    return model


def gradients(network: FCOS, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    output = network(images, torch.tensor([images.shape[2:]] * len(images)))
    assert output.quality is not None
    outputs = [output.logits, output.distances, output.quality]
    sum(part.square().mean() for part in outputs).backward()  # type: ignore[union-attr]
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return outputs, found


def random_images(*shape: int) -> Tensor:
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 255
    return images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "tf_efficientnet_lite0", "freeze_stages": 0},
        {"backbone": "mobilenetv2_100"},
        {"backbone": "resnet50", "freeze_stages": 0},
        {"freeze_bn": False, "head_norm": "bn"},
        {"backbone": "test_efficientnet", "activation_checkpointing": True},
    ],
    ids=lambda settings: settings.get("backbone", "bn"),
)
def test_it_learns_the_same(settings: dict[str, Any]) -> None:
    # A group norm of one cell is 0, where the gradient of a relu is a matter of rounding.
    model = make(**{"head_norm": "none", **settings}).double()
    twin = for_training(model)
    if settings.get("activation_checkpointing"):
        recompute_activations(twin)
    images = random_images(2, 3, 38, 30).double()  # depthwise convolutions take seconds in this precision
    for wanted, found in zip(gradients(model, images), gradients(twin, images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "mobilenetv2_100", "resnet18", "resnet50"])
def test_every_frozen_norm_is_folded(backbone: str) -> None:
    model = make(backbone=backbone)
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    twin = for_training(model)
    assert sum(isinstance(module, FoldedNorm) for module in twin.modules()) == norms > 10
    assert sum(bool(module.norm) for module in twin.modules() if isinstance(module, TrainedConv2d)) == norms


def test_tensors_are_shared_under_the_same_names_and_the_model_stays_plain() -> None:
    model = make(freeze_bn=False)
    kinds = [type(module) for module in model.modules()]
    twin = for_training(model)
    assert [type(module) for module in model.modules()] == kinds
    ours, theirs = twin.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in ours)
    mean = model.backbone.body.layer2[0].bn1.running_mean.clone()
    twin(random_images(2, 3, 64, 64), torch.tensor([[64, 64]] * 2))
    assert not torch.equal(model.backbone.body.layer2[0].bn1.running_mean, mean)


def test_a_copy_uses_its_own_norms() -> None:
    twin = for_training(make())
    other = copy.deepcopy(twin)
    images, sizes = random_images(1, 3, 64, 64), torch.tensor([[64, 64]])
    before = twin(images, sizes).logits
    assert torch.equal(other(images, sizes).logits, before)
    randomize_norms(other, seed=1)
    assert torch.equal(twin(images, sizes).logits, before)
    assert not torch.equal(other(images, sizes).logits, before)


def test_an_activation_inside_a_norm_is_kept() -> None:
    twin = for_training(make(backbone="mobilenetv2_100"))
    norms = [module for module in twin.modules() if isinstance(module, FoldedNorm)]
    negative = -torch.ones(1, 1, 1, 1)
    assert {type(norm.activation).__name__ for norm in norms} == {"ReLU6", "Identity"}
    assert {norm(negative.clone()).item() for norm in norms} == {0.0, -1.0}


def test_a_whole_network_learns_the_same_with_and_without_winograd(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model(load_config({"model": "fcos_r18", "pretrain": False}), 3).train()
    twin = for_training(model.to(memory_format=torch.channels_last))
    called: list[tuple[int, ...]] = []
    convolve = winograd.conv3x3_ahead

    def counted(x: Tensor, *others: Tensor | None) -> Tensor:
        called.append(tuple(x.shape))
        return convolve(x, *others)

    monkeypatch.setattr(winograd, "conv3x3_ahead", counted)
    found: list[dict[str, Tensor]] = []
    for channels in (64, 10**6):  # 64: nearly every 3x3 convolution, those of the backbone too
        monkeypatch.setattr(winograd, "MIN_CHANNELS", channels)
        before = len(called)
        found.append(gradients(twin, random_images(1, 3, 480, 544))[1])
        assert (len(called) > before + 20) == (channels == 64)
    assert found[0].keys() == found[1].keys()
    for name, ours in found[0].items():
        theirs = found[1][name]
        assert float((ours - theirs).norm()) < 1e-3 * float(theirs.norm()) + 1e-7, name


def conv_of(conv: nn.Conv2d) -> TrainedConv2d:
    """The same as it is in a network for training."""
    conv.__class__ = TrainedConv2d
    assert isinstance(conv, TrainedConv2d)
    conv.norm, conv.pads_same = (), False
    return conv


LARGE = torch.zeros(1, 192, 60, 60).contiguous(memory_format=torch.channels_last)


def test_large_convolutions_go_by_winograd() -> None:
    assert "Winograd" in type(conv_of(nn.Conv2d(192, 192, 3, padding=1))(LARGE).grad_fn).__name__
    assert "Winograd" not in type(conv_of(nn.Conv2d(192, 64, 3, padding=1))(LARGE).grad_fn).__name__


def test_plain_convolutions_in_mixed_precision_and_where_the_network_is_traced() -> None:
    conv = conv_of(nn.Conv2d(192, 192, 3, padding=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(LARGE).dtype == torch.bfloat16
    program = torch.export.export(conv, (LARGE,))
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == ["aten.conv2d.default"]


def test_depthwise_convolutions_leave_mixed_precision_while_they_train() -> None:
    conv = conv_of(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    x = torch.ones(1, 8, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x.bfloat16()).dtype == torch.float32
        with torch.no_grad():
            assert conv(x).dtype == torch.bfloat16
    assert conv(x).dtype == torch.float32


def test_group_norm_leaves_mixed_precision() -> None:
    model = make(head_norm="gn").to(memory_format=torch.channels_last)
    norm = for_training(model).head.box_tower[1]
    features = torch.randn(2, 16, 6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = norm(features)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, model.head.box_tower[1](features.float()))


@pytest.mark.parametrize("size_hw", [(1, 1), (4, 2)])  # of P5
def test_levels_of_one_cell_or_column_are_right_in_bfloat16(size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pyramid = for_training(make()).pyramid
    features = [
        torch.randn(6, channels, *(factor * side for side in size_hw))
        for channels, factor in ((128, 4), (256, 2), (512, 1))
    ]

    def results() -> list[Tensor]:
        levels = [level.float() for level in pyramid(features)[3:]]  # P6, P7
        gradients = torch.autograd.grad(levels[1].square().sum(), [conv.weight for conv in pyramid.extra])
        return [*levels, *gradients]

    wanted = results()
    for _ in range(20):
        dirty = [torch.full((size,), float("nan")) for size in range(500, 10_000, 100)]
        del dirty  # the memory that comes next is full of it
        with torch.autocast("cpu", torch.bfloat16):
            found = results()
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * other.abs().max().item())
