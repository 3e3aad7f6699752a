"""Activation checkpointing: recompute activations in the backward pass instead of storing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fcos.model.fcos import FCOS


def recompute_activations(model: FCOS) -> None:
    """Make the blocks of the backbone and the towers of the head store only their inputs.

    Weights, names and results do not change; the backward pass takes about one forward pass longer.
    """
    segments = (*backbone_blocks(model), model.head.classification_tower, model.head.box_tower)
    for segment in segments:
        segment.forward = partial(_forward, segment, segment.forward)


def backbone_blocks(model: FCOS) -> list[nn.Module]:
    """The repeated blocks of the backbone: modules of several layers in its stages.

    Empty for a network without blocks (VGG): storing the input of every layer is the default anyway.
    """
    return [block for stage in model.backbone.body.children() for block in _blocks_in(stage)]


def _blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _blocks_in(child)
        elif sum(1 for layer in child.modules() if any(True for _ in layer.parameters(recurse=False))) > 1:
            yield child


def _forward(segment: nn.Module, forward: Any, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_kept(segment)),
    )


@contextmanager
def _statistics_kept(segment: nn.Module) -> Iterator[None]:
    """Keep batch norm from updating its statistics a second time in the recomputation."""
    norms: list[Any] = [
        module
        for module in segment.modules()
        if module.training and getattr(module, "track_running_stats", False)
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
