"""Settings to the optimizer."""

from __future__ import annotations

import torch

from fcos.config import TrainConfig


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW; no weight decay on norms (AdelaiDet, detectron2) and biases (official).

    Each group has a `lr_factor`: its rate is that times the schedule's.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    in_backbone = {name: name.startswith("backbone.") and config.lr_backbone != 1 for name, _ in trained}
    groups = [
        {
            "params": [p for name, p in trained if in_backbone[name] == slower and (p.ndim > 1) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_factor": config.lr_backbone if slower else 1.0,
        }
        for slower in ((False, True) if any(in_backbone.values()) else (False,))
        for decays in (True, False)
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr_base)
    return torch.optim.SGD(groups, lr=config.lr_base, momentum=config.momentum)
