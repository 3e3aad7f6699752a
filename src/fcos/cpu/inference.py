"""The network as it predicts: what training needs to keep apart is computed once, ahead.

Frozen batch norm goes into the weights of the convolution before it (training folds it at every step, since
the weights change), weights lie in channels-last order, and on a CPU activations and shortcuts are part of
the convolutions (`fused.py`). The predictions are those of the network it was made from, to rounding.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from fcos.cpu import onednn
from fcos.cpu.fused import fuse_convolutions, fuse_layers
from fcos.model.fcos import FCOS
from fcos.model.frozen_norm import FoldedConv2d, FoldedNorm


def for_inference(model: FCOS) -> FCOS:
    """A copy for predicting only, on the same device; later changes of `model` do not reach it."""
    network = copy.deepcopy(model).eval().requires_grad_(False)
    for name, module in list(network.named_modules()):
        if isinstance(module, FoldedConv2d):
            network.set_submodule(name, module.plain())
        elif isinstance(module, FoldedNorm):
            network.set_submodule(name, module.activation or nn.Identity())
    network = network.to(memory_format=torch.channels_last)
    is_plain = network.pixel_mean.dtype == torch.float32
    if network.pixel_mean.device.type == "cpu" and is_plain and onednn.is_available():
        network.backbone.body = fuse_convolutions(network.backbone.body, network.backbone.levels)
        for part in (network.pyramid, network.head.classification_tower, network.head.box_tower):
            fuse_layers(part)
    return network
