"""Read the tensors of a weight file without running code from it."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fcos.errors import WeightsError
from fcos.files import check_regular, first_line_of
from fcos.weights.archive import PICKLE_STARTS, UnsafeFileError, read_archive
from fcos.weights.model_file import check_numbers
from fcos.weights.published.layouts import layout_of

# Entries in which training programs store the weights, averaged ones first: those are what their authors
# evaluated. (MMEngine's "ema_state_dict" is not among them: it swaps the two when saving, so "state_dict"
# contains the average.)
AVERAGED = ("model_ema", "state_dict_ema", "ema_model", "ema")
CONTAINERS = (*AVERAGED, "state_dict", "model", "model_state_dict", "module", "ema_state_dict")
MAX_DEPTH = 4  # of nested containers: {"ema": {"module": {...}}}
# Prefixes added by wrappers: DistributedDataParallel, Lightning. (torch.compile's may be anywhere in a name.)
WRAPPERS = ("module.", "model.", "ema_model.")
COMPILED = "_orig_mod."
# Counters stored with averaged weights.
COUNTERS = ("n_averaged", "num_updates", "steps", "decay")
PREFIX_OF_MMCV = "ema_"  # mmcv stores the live weights with it; the weights without it are averaged

PICKLE_SUFFIXES = (".pth", ".pt", ".pkl", ".pyth", ".bin", ".ckpt")

ONLY_TENSORS = (
    "only tensors are loaded, never code. If you trust this file, extract its tensors and settings in "
    "an environment that has its library: python -c \"import torch; c = torch.load('in.pth', "
    "map_location='cpu', weights_only=False); m = c.get('meta', {}); "
    "m = {k: m[k] for k in ('CLASSES', 'dataset_meta') if k in m} | "
    "{'cfg': str(getattr(m.get('cfg'), 'pretty_text', m.get('cfg') or m.get('config') or ''))}; "
    "torch.save({'state_dict': c.get('state_dict', c.get('model', c)), 'meta': m}, 'out.pth')\""
)

ONLY_ARRAYS = (
    "only torch files are read. If you trust this file, extract its arrays in an environment that has "
    "its library: python -c \"import pickle, torch; c = pickle.load(open('in.pkl', 'rb'), encoding='latin1')"
    "; torch.save({k: torch.as_tensor(v) for k, v in c.get('model', c).items()}, 'out.pth')\""
)


@dataclass(frozen=True)
class StateFile:
    """The content of a weight file.

    Attributes:
        tensors: by name, without prefixes of wrappers.
        about: the other entries (epoch, optimizer, meta, ...).
        notes: which of several sets of weights was used, in sentences.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_published(path: Path) -> bool:
    """Whether a file is of another code base: a pickle or zip, or safetensors without our card."""
    if not path.is_file():  # a folder, a pipe, nothing
        return False
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
        if start in (b"PK", *PICKLE_STARTS) or path.suffix in PICKLE_SUFFIXES:
            return True
        with safe_open(path, framework="pt") as file:
            return "fcos" not in (file.metadata() or {}) and layout_of(file.keys()) is not None
    except (OSError, SafetensorError):
        return False  # the reader of our own files reports what is wrong


def open_state(path: Path) -> StateFile:
    """The tensors of a `.pth`, `.pkl` or `.safetensors` file.

    Raises:
        WeightsError: it does not exist, is damaged, has no weights, or is a pickle that would run code.
    """
    content: Mapping[Any, Any] = load_without_code(path)
    about, taken = dict[str, Any](), list[str]()
    while len(taken) < MAX_DEPTH and (key := _container(content)) is not None:
        about |= {str(name): value for name, value in content.items() if name != key}
        content = content[key]
        taken.append(key)
    notes = []
    if others := [
        key for key in CONTAINERS if taken and taken[0] in AVERAGED and _holds_tensors(about.get(key))
    ]:
        notes.append(f'used the averaged weights ("{taken[0]}"), not those in "{others[0]}"')
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    tensors = {key: value for key, value in tensors.items() if key not in COUNTERS}
    if not tensors:
        raise WeightsError(f"{path.name} contains no weights", where=str(path), fix="give a weight file")
    tensors = _without_wrappers(tensors)
    if kept := [key for key in tensors if key.startswith(PREFIX_OF_MMCV)]:
        tensors = {key: value for key, value in tensors.items() if key not in kept}
        notes.append(
            f'{len(kept)} tensors "{PREFIX_OF_MMCV}..." were ignored: in mmcv, those without it are averaged'
        )
    check_numbers(tensors, path)
    return StateFile(tensors, about, tuple(notes))


def _container(content: Mapping[Any, Any]) -> str | None:
    """The entry that contains the weights; None if they are at the top level."""
    return next((key for key in CONTAINERS if _holds_tensors(content.get(key))), None)


def _holds_tensors(value: object, depth: int = 0) -> bool:
    """Whether it is a dict of tensors, or one of such dicts."""
    if not isinstance(value, Mapping) or depth == MAX_DEPTH:
        return False
    inner = (value.get(key) for key in CONTAINERS)
    return any(isinstance(part, Tensor) for part in value.values()) or any(
        _holds_tensors(part, depth + 1) for part in inner
    )


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes of (nested) wrappers."""
    tensors = {key.replace(COMPILED, ""): value for key, value in tensors.items()}
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(w) for key in tensors)), None):
        tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def load_without_code(path: Path) -> dict[Any, Any]:
    """The content of a weight file, which must be a dict."""
    if not os.path.lexists(path):
        raise WeightsError(f"there is no weight file {path}", fix="correct the path")
    check_regular(path, WeightsError)
    advice = ONLY_ARRAYS if path.suffix == ".pkl" else ONLY_TENSORS
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = read_archive(path)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it contains more than tensors, {wanted.group(1)}" if wanted else "it is a pickle of objects"
        )
        raise unreadable(path, reason, advice) from None
    except (UnsafeFileError, SafetensorError) as error:
        fix = f"it should be a torch .pth file, or .safetensors; {advice}"
        raise unreadable(path, first_line_of(error), fix) from error
    if not isinstance(content, dict):
        raise unreadable(path, f"it contains a {type(content).__name__}, not weights by name", advice)
    return content


def unreadable(path: Path, reason: str, fix: str) -> WeightsError:
    """The error for a file that is not a weight file."""
    return WeightsError(f"{path.name} cannot be read as a weight file: {reason}", where=str(path), fix=fix)
