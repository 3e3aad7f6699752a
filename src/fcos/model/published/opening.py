"""A weight file to tensors, without running code from it."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fcos.errors import WeightsError
from fcos.model.published.layouts import layout_of

# Where training programs keep the weights among the other things that they save.
CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
# What wrappers put before every name: DistributedDataParallel, torch.compile, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.")

# How pickles begin (protocols 2 to 5), and how they are called.
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PICKLE_SUFFIXES = (".pth", ".pt", ".pkl", ".pyth", ".bin", ".ckpt")

ONLY_TENSORS = (
    "only tensors are loaded, never code. Where you trust this one, write its tensors alone: "
    "python -c \"import torch; c = torch.load('in.pth', weights_only=False); "
    "torch.save(c.get('state_dict', c.get('model', c)), 'out.pth')\" in an environment that has its library"
)


@dataclass(frozen=True)
class StateFile:
    """What a weight file holds.

    Attributes:
        tensors: by name, without the names of wrappers.
        about: what else stands beside them (epoch, optimizer, meta, ...).
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)


def is_published(path: Path) -> bool:
    """Whether to read a file as another code base's: a pickle or zip, or safetensors without our card."""
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
        if start in (b"PK", *PICKLE_STARTS) or path.suffix in PICKLE_SUFFIXES:
            return True
        with safe_open(path, framework="pt") as file:
            return "fcos" not in (file.metadata() or {}) and layout_of(file.keys()) is not None
    except (OSError, SafetensorError):
        return False  # the reader of our own files says what is wrong


def open_state(path: Path) -> StateFile:
    """The tensors of a `.pth` or `.safetensors` file.

    Raises:
        WeightsError: no such file, damaged, no weights in it, or a pickle that wants to run code.
    """
    content = load_without_code(path)
    about: dict[str, Any] = {}
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            about = {name: value for name, value in content.items() if name != key}
            content = content[key]
            break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path.name} holds no weights", where=str(path), fix="give a file of weights")
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return StateFile(tensors, about)


def load_without_code(path: Path) -> dict[str, Any]:
    """The content of a weight file, which must be a dict."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on foreign pickles, which are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"there is no weight file {path}", fix="correct the path") from None
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds more than tensors, {wanted.group(1)}" if wanted else "it is a pickle of objects"
        raise unreadable(path, reason, ONLY_TENSORS) from None
    except Exception as error:  # torch, zipfile and safetensors each raise kinds of their own
        first_line = str(error).strip().partition("\n")[0]
        fix = f"it should be a .pth file of torch, or .safetensors; {ONLY_TENSORS}"
        raise unreadable(path, f"{type(error).__name__}: {first_line}", fix) from error
    if not isinstance(content, dict):
        raise unreadable(path, f"it holds a {type(content).__name__}, not weights by name", ONLY_TENSORS)
    return content


def unreadable(path: Path, reason: str, fix: str) -> WeightsError:
    """The error for a file that is no file of tensors."""
    return WeightsError(f"{path.name} cannot be read as a weight file: {reason}", where=str(path), fix=fix)
