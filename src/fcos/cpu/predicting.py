"""`for_predicting`: the network, optimized for prediction on a CPU."""

from __future__ import annotations

import torch

from fcos.cpu import onednn
from fcos.cpu.fold import folded
from fcos.cpu.fuse import fuse_convolutions, fuse_layers
from fcos.cpu.normalize import RowwiseFCOS
from fcos.model.fcos import FCOS


def for_predicting(model: FCOS) -> FCOS:
    """A copy that predicts faster on a CPU, with the same results up to rounding."""
    network = folded(model).to(memory_format=torch.channels_last)
    network.__class__ = RowwiseFCOS
    if network.pixel_mean.dtype == torch.float32 and onednn.is_available():
        network.backbone.body = fuse_convolutions(network.backbone.body, network.backbone.levels)
        for part in (network.pyramid, network.head.classification_tower, network.head.box_tower):
            fuse_layers(part)
    return network
