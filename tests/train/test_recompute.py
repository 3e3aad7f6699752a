"""Activation checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fcos.config import load_config
from fcos.model.build import build_model
from fcos.model.fcos import FCOS
from fcos.train.recompute import backbone_blocks, recompute_activations

SMALL = {"pretrain": False, "fpn_channels": 16, "head_channels": 16, "head_convs": 2, "freeze_stages": 0}


def step(model: FCOS) -> tuple[list[torch.Tensor], int]:
    """Output, gradients and buffers after a forward and a backward pass, and bytes kept between them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=generator, dtype=torch.uint8)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.train()(images, torch.tensor([[64, 96], [50, 80]]))
        bytes_kept = sum(kept.values())
    assert output.quality is not None
    (output.logits.square().sum() + output.distances.sum() + output.quality.square().sum()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [output.logits, output.distances, output.quality, *gradients, *model.buffers()], bytes_kept


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet"])
@pytest.mark.parametrize("trained_norms", [False, True])
def test_outputs_gradients_and_statistics_are_the_same_to_the_last_bit(
    backbone: str, trained_norms: bool
) -> None:
    norms = {"freeze_bn": False, "head_norm": "bn"} if trained_norms else {}
    torch.manual_seed(0)
    plain = build_model(load_config({"backbone": backbone, **SMALL, **norms}), 3)
    other = copy.deepcopy(plain)
    recompute_activations(other)
    (wanted, much), (found, little) = step(plain), step(other)
    assert len(found) == len(wanted) > 50
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert little < 0.6 * much
    assert other.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "backbone", ["convnext_atto", "regnety_002", "hgnetv2_b0", "efficientvit_b0", "mobilenetv3_small_050"]
)
def test_backbones_of_every_make_keep_less(backbone: str) -> None:
    torch.manual_seed(0)
    plain = build_model(load_config({"backbone": backbone, **SMALL, "head_convs": 0}), 3)
    other = copy.deepcopy(plain)
    recompute_activations(other)
    (wanted, much), (found, little) = step(plain), step(other)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert little < 0.7 * much


def test_a_backbone_without_blocks_has_none_to_recompute() -> None:
    assert backbone_blocks(build_model(load_config({"backbone": "vgg11", **SMALL}), 3)) == []
    assert len(backbone_blocks(build_model(load_config({"backbone": "resnet18", **SMALL}), 3))) == 8


def test_a_block_has_several_layers() -> None:
    model = build_model(load_config({"backbone": "vgg11", **SMALL}), 3)
    block = nn.Module()
    block.layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model.backbone.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), block))
    assert backbone_blocks(model) == [block]
