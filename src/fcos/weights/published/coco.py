"""COCO's classes, and torchvision's COCO weights of FCOS with ResNet-50."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from fcos.errors import WeightsError

# torchvision's outputs: their numbers are category ids, which have gaps.
_OUTPUTS: list[str] = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
_PAIRS = [(number, name) for number, name in enumerate(_OUTPUTS) if name not in ("__background__", "N/A")]

COCO_IDS = tuple(number for number, _ in _PAIRS)
COCO_NAMES = tuple(name for _, name in _PAIRS)
# Of torchvision's 91 outputs, 11 are unused. They are ordinary outputs, which torchvision also counts among
# the detections of an image; `fcos.data.names.is_no_class` recognizes them by these names.
TORCHVISION_NAMES = tuple(dict(_PAIRS).get(number, f"(no class {number})") for number in range(len(_OUTPUTS)))


def coco_file() -> Path:
    """The file in torch.hub's folder, downloaded (and checked by its hash) if it is not there.

    Raises:
        WeightsError: it cannot be downloaded; the message says which file to put where.
    """
    weights = FCOS_ResNet50_FPN_Weights.COCO_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if path.is_file():
        return path
    try:
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # urllib, ssl and torch.hub each raise their own errors
        raise WeightsError(
            f"torchvision's COCO weights cannot be downloaded ({type(error).__name__}: {error})",
            where='setting "pretrain": "coco"',
            fix=f"download {weights.url} on another machine, and save the file as {path}",
        ) from error
    return path
