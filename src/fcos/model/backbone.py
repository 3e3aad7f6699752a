"""The backbone: a timm network that gives C3, C4, C5 (features at strides 8, 16, 32)."""

from __future__ import annotations

import timm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcos.model.frozen_norm import fold_frozen_norms

STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """A timm network cut to the features at strides 8, 16 and 32.

    Args:
        name: timm model name.
        freeze_bn: batch norm keeps its statistics and its affine weights (training the affine part of a
            converted backbone cost a peer more than 1 AP).
        freeze_stages: the stem and the first N stages (stage 1 ends at stride 4) get no gradient; 0: all do.
    """

    def __init__(self, name: str, *, freeze_bn: bool = True, freeze_stages: int = 1) -> None:
        super().__init__()
        self.body = timm.create_model(name, pretrained=False, features_only=True)
        self.freeze_bn = freeze_bn
        info = self.body.feature_info
        missing = [stride for stride in STRIDES if stride not in info.reduction()]
        if missing:
            raise ValueError(f"{name} has no features at stride {missing}, only at {info.reduction()}")
        self.levels = [info.reduction().index(stride) for stride in STRIDES]
        self.channels: list[int] = [info.channels()[level] for level in self.levels]
        if freeze_bn:
            for norm in self._batch_norms():
                norm.requires_grad_(False)
            fold_frozen_norms(self.body)
        if freeze_stages:
            self._freeze_up_to(info.module_name(info.reduction().index(2 ** (freeze_stages + 1))))

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.body.modules() if isinstance(module, _BatchNorm)]

    def _freeze_up_to(self, module_name: str) -> None:
        # timm registers modules in the order of the forward pass, and may rename "stages.0" to "stages_0".
        prefixes = (f"{module_name}.", f"{module_name.replace('.', '_')}.")
        parameters = list(self.body.named_parameters())
        last = max(i for i, (name, _) in enumerate(parameters) if name.startswith(prefixes))
        for _, parameter in parameters[: last + 1]:
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """As usual, but frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.freeze_bn:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """C3, C4, C5 of normalised images."""
        features = self.body(images)
        return [features[level] for level in self.levels]
