"""Convolutions that add a shortcut and apply their activation in the same pass, for predictions.

oneDNN, the library behind PyTorch's convolutions on CPUs, can add a tensor and apply a ReLU while a result is
still in the cache. Each pass saved is small, but every result of 32 MiB and more is allocated in fresh pages:
with ResNet-50 at 800 x 1344 that alone is a tenth of the time. A shortcut added in place needs no new memory.

Worth: without it the backbone takes 1.25 (`fcos_r50`, one image of 800 x 1344) to 1.6 times (`fcos_lite0`,
four of 320 x 448) as long; without adding in place 1.04 to 1.08 times with `fcos_r50`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeGuard

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.drop import DropPath
from timm.layers.padding import pad_same
from torch import Tensor, fx, nn

from fcos.cpu import onednn
from fcos.cpu.first_layers import first_layers_one_by_one
from fcos.cpu.fold import is_plain_convolution
from fcos.cpu.onednn import NO_ACTIVATION, Activation
from fcos.cpu.winograd import conv3x3_ahead, pays, transform_weight
from fcos.model.frozen_norm import FrozenBatchNorm

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)  # in evaluation mode
ADDITIONS = (operator.add, operator.iadd, torch.add)
UNTRACEABLE = (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError)


class FusedConv2d(nn.Module):
    """A convolution for inference in float32 on a CPU.

    Args:
        conv: has the weights.
        activation: follows the convolution and the shortcut.
        in_place: the shortcut is overwritten with the result.
    """

    def __init__(
        self, conv: nn.Conv2d, activation: Activation | None = None, *, in_place: bool = False
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.activation, self.in_place = activation or NO_ACTIVATION, in_place
        self.pads_same = isinstance(conv, Conv2dSame)
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding = (0, 0) if self.pads_same else tuple(int(side) for side in conv.padding)
        self.dilation, self.groups, self.padding_mode = conv.dilation, conv.groups, conv.padding_mode
        self.shape = list(self.padding), list(self.stride), list(self.dilation), self.groups
        self.bias = None if conv.bias is None else conv.bias.detach()
        # Channels-last, not packed by oneDNN: that depends on the size of the image, and packed for another
        # size some convolutions took four times as long, while it saves 1 % at the right one.
        self.weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)

    @cached_property
    def _transformed(self) -> Tensor:
        """The weights of Winograd's convolution."""
        return transform_weight(self.weight)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The result; with a shortcut the activation of their sum."""
        if shortcut is None and self.activation[0] in ("none", "relu") and pays(x, self, ahead=True):
            result = conv3x3_ahead(x, self._transformed, self.bias)
            return result if self.activation[0] == "none" else result.relu_()
        if self.pads_same:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return onednn.convolution(
            x, self.weight, self.bias, self.shape, self.activation, shortcut, in_place=self.in_place
        )


def fuse_convolutions(network: nn.Module, levels: Sequence[int]) -> nn.Module:
    """The same network with its convolutions fused, or the network itself if it cannot be traced.

    Args:
        network: in evaluation mode, images to a list of features.
        levels: indices of the features that are used; the others become None.
    """
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
        _leave_out_others(traced, levels)
        _fuse(traced)
        parts = first_layers_one_by_one(traced)
        return parts if _same_features(network, parts, levels) else network
    except UNTRACEABLE:  # its forward pass depends on values, or is written in a way fx does not know
        return network


def fuse_layers(module: nn.Module) -> None:
    """Fuse the convolutions of sequences with the following activations, in place."""
    for name, child in list(module.named_children()):
        if not fits(child):
            fuse_layers(child)
            continue
        following: Any = None
        if isinstance(module, nn.Sequential) and int(name) + 1 < len(module):
            following = module[int(name) + 1]
        activation = _activation(following)
        if activation:
            module[int(name) + 1] = nn.Identity()  # type: ignore[operator]
        setattr(module, name, FusedConv2d(child, activation))


def fits(module: object) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution that can be fused."""
    return (
        is_plain_convolution(module)
        and not isinstance(module.padding, str)
        and module.weight.dtype == torch.float32
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = (Conv2dSame, DropPath, FrozenBatchNorm)
        return isinstance(m, known) or super().is_leaf_module(m, module_qualified_name)


def _leave_out_others(traced: fx.GraphModule, levels: Sequence[int]) -> None:
    """Features that are not read need no memory, and may be overwritten."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    features = [feature if i in levels else None for i, feature in enumerate(output.args[0])]
    output.args = (features,)


def _fuse(traced: fx.GraphModule) -> None:
    modules = dict(traced.named_modules())

    def module_of(node: Any) -> nn.Module | None:
        is_call = isinstance(node, fx.Node) and node.op == "call_module"
        return modules[str(node.target)] if is_call else None

    for node in list(traced.graph.nodes):
        if isinstance(module_of(node), NOTHING):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    for node in list(traced.graph.nodes):
        conv = module_of(node)
        if not fits(conv):
            continue
        replaced, shortcut = [node], None
        follower = _only_user(node)
        if follower and (other := _other_summand(follower, node)):
            replaced.append(follower)
            shortcut = other
        activation = _activation(module_of(_only_user(replaced[-1])))
        if activation and (shortcut is None or activation[0] == "relu"):
            replaced.append(_only_user(replaced[-1]))
        else:
            activation = None
        in_place = shortcut is not None and _may_be_overwritten(shortcut, replaced, module_of)
        fused = FusedConv2d(conv, activation, in_place=in_place)
        modules[str(node.target)] = fused
        traced.set_submodule(str(node.target), fused)
        if len(replaced) > 1:
            with traced.graph.inserting_after(replaced[-1]):
                arguments = (node.args[0],) if shortcut is None else (node.args[0], shortcut)
                new = traced.graph.call_module(str(node.target), arguments)
            replaced[-1].replace_all_uses_with(new)
            for old in reversed(replaced):
                traced.graph.erase_node(old)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_summand(node: fx.Node, summand: fx.Node) -> fx.Node | None:
    """What is added to `summand`, if `node` is a plain sum of two different tensors."""
    if node.op != "call_function" or node.target not in ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    others = [arg for arg in node.args if arg is not summand]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _activation(module: nn.Module | None) -> Activation | None:
    if type(module) is nn.ReLU:
        return "relu", []
    if type(module) is nn.ReLU6:
        return "hardtanh", [0.0, 6.0]
    return None


def _may_be_overwritten(shortcut: fx.Node, replaced: list[fx.Node], module_of: Any) -> bool:
    """Whether nothing reads the shortcut after the sum: a convolution made it, and earlier ones read it."""
    others = [user for user in shortcut.users if user not in replaced]
    modules = [module_of(node) for node in (shortcut, *others)]
    are_convolutions = all(fits(module) or isinstance(module, FusedConv2d) for module in modules)
    return are_convolutions and all(other < replaced[-1] for other in others)


@torch.inference_mode()
def _same_features(network: nn.Module, fused: nn.Module, levels: Sequence[int]) -> bool:
    """Whether both give the same for images of two sizes."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((64, 96), (96, 64)):
        images = torch.rand(2, 3, height, width, generator=generator) * 4 - 2
        images = images.contiguous(memory_format=torch.channels_last)
        original, features = network(images), fused(images)
        for wanted, feature in ((original[level], features[level]) for level in levels):
            largest = float(wanted.abs().max())
            if wanted.shape != feature.shape or not float((wanted - feature).abs().max()) <= 1e-4 * largest:
                return False
    return True
