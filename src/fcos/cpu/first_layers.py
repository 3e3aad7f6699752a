"""The first layers of a backbone for one image at a time, the others for the whole batch.

The feature maps of the first layers are large and their weights few: those of one image stay in the
processor's cache; those of a batch do not, and the C library returns such large blocks to the system each
time. Later layers have small maps and many weights, which a batch reads once.

Worth: without it the backbone takes 1.18 (`fcos_mobilenetv2`) to 1.30 times (`fcos_lite0`) as long for 4
images of 320 x 448, in a process that does not keep freed memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.fx.passes.split_module import split_module

STRIDE = 8  # at which the maps are small enough
IMAGE_HW = (64, 96)  # of the example that shows the strides


class OneByOne(nn.Module):
    """Calls a network with one image at a time.

    Args:
        network: a batch of images to a batch of features.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """The features of a batch."""
        if len(images) == 1:
            return self.network(images)  # type: ignore[no-any-return]
        return torch.cat([self.network(images[i : i + 1]) for i in range(len(images))])


def first_layers_one_by_one(backbone: fx.GraphModule) -> nn.Module:
    """The same network in two parts, or itself if they are connected by more than one map of `STRIDE`."""
    last = _last_of_first_layers(backbone)
    if last is None:
        return backbone
    nodes = list(backbone.graph.nodes)
    first_layers = set(nodes[: nodes.index(last) + 1])
    parts = split_module(backbone, backbone, lambda node: 0 if node in first_layers else 1)
    parts.set_submodule("submod_0", OneByOne(parts.get_submodule("submod_0")))
    return parts


def _last_of_first_layers(backbone: fx.GraphModule) -> fx.Node | None:
    """The first node with a map of `STRIDE` that is the only one up to it that later nodes use."""
    images = torch.zeros(1, 3, *IMAGE_HW).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        ShapeProp(backbone).propagate(images)
    nodes: list[fx.Node] = list(backbone.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last_use = [max((place[user] for user in node.users), default=-1) for node in nodes]
    map_hw = tuple(side // STRIDE for side in IMAGE_HW)
    for i, node in enumerate(nodes):
        shape = getattr(node.meta.get("tensor_meta"), "shape", ())
        if tuple(shape[2:]) == map_hw and last_use[i] > i and max(last_use[:i]) <= i:
            return node
    return None
