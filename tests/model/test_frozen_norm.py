from __future__ import annotations

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from fcos.model.frozen_norm import FrozenBatchNorm, freeze_norms


def frozen(norm: nn.Module) -> nn.Module:
    freeze_norms(norm.requires_grad_(False))
    return norm


def test_a_frozen_norm_by_hand() -> None:
    norm = nn.BatchNorm2d(1, eps=0.0)
    state = {"weight": [3.0], "bias": [1.0], "running_mean": [10.0], "running_var": [4.0]}
    norm.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    assert frozen(norm)(torch.tensor([12.0, 10.0]).reshape(1, 1, 1, 2)).tolist() == [[[[4.0, 1.0]]]]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm2d(4), (2, 4, 3, 5)), (nn.BatchNorm1d(4), (2, 4)), (BatchNormAct2d(4), (2, 4, 3, 5))],
)
def test_it_is_the_norm_in_evaluation_mode_and_stays_it_in_training(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    for tensor in norm.state_dict().values():
        if tensor.dtype.is_floating_point:
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(shape)
    wanted, names = norm.eval()(x), list(norm.state_dict())
    assert type(frozen(norm).train()) is FrozenBatchNorm
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    torch.testing.assert_close(norm(x), wanted)
    assert list(norm.state_dict()) == names
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_norm_whose_weights_are_trained_is_left_alone() -> None:
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).requires_grad_(False))
    freeze_norms(layers)
    assert [type(layer) for layer in layers] == [nn.BatchNorm2d, FrozenBatchNorm]


def test_nothing_of_the_size_of_the_input_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        frozen(nn.BatchNorm2d(4))(x * 1).sum().backward()
    assert max(kept, default=0) <= 4


def test_half_precision_stays_half_precision() -> None:
    assert frozen(nn.BatchNorm2d(4))(torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
