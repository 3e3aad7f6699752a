"""torchvision's COCO weights of FCOS with ResNet-50, through torchvision's own downloader."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from fcos.errors import WeightsError


def coco_file() -> Path:
    """The file in torch.hub's folder, downloaded (and checked by its hash) if it is not there.

    Raises:
        WeightsError: it cannot be downloaded; says which file to put where.
    """
    weights = FCOS_ResNet50_FPN_Weights.COCO_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if path.is_file():
        return path
    try:
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # urllib, ssl and torch.hub each raise kinds of their own
        raise WeightsError(
            f"torchvision's COCO weights cannot be downloaded ({type(error).__name__}: {error})",
            where='setting "pretrain": "coco"',
            fix=f"download {weights.url} elsewhere, and put the file to {path}",
        ) from error
    return path
