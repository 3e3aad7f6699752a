"""Settings to the optimizer."""

from __future__ import annotations

import torch

from fcos.config import TrainConfig


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW; no weight decay on norms (AdelaiDet, detectron2) and biases (official)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr_base)
    return torch.optim.SGD(groups, lr=config.lr_base, momentum=config.momentum)
