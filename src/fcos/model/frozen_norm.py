"""Batch norm whose statistics and affine weights are fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm(_BatchNorm):
    """A factor and a shift for each channel, followed by the activation that some norms of timm contain.

    Made by `freeze_norms` from any batch norm, in place, so that all tensors keep their names.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The same in training and in evaluation mode."""
        shape = (-1, *[1] * (input.ndim - 2))
        factor, shift = (part.to(input.dtype).view(shape) for part in self.factor_and_shift())
        # Unlike `F.batch_norm` this keeps no copy of its input for the backward pass.
        result: Tensor = self.activation(torch.addcmul(shift, input, factor))
        return result

    def factor_and_shift(self) -> tuple[Tensor, Tensor]:
        """The factor and the shift of each channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        factor = (self.running_var + self.eps).rsqrt() * self.weight
        return factor, self.bias - self.running_mean * factor

    @property
    def activation(self) -> nn.Module:
        """Follows the norm."""
        return getattr(self, "act", nn.Identity())


def freeze_norms(network: nn.Module) -> None:
    """Freeze every batch norm whose weights are not trained, in place."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
            module.__class__ = FrozenBatchNorm
