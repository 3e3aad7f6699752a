"""Pickles of numpy arrays, as detectron2 and Detectron publish them (`.pkl`), read without running code.

A pickle calls what it names. Here each of the few names that arrays need is a class of this file, which holds
what it was given and computes nothing; any other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcos.errors import WeightsError
from fcos.files import read_bytes
from fcos.weights.archive import UnsafeFileError

MEMO, MAX_MEMO = ("PUT", "BINPUT", "LONG_BINPUT"), 10**6
KIND = re.compile(r"[fiu][1248]|b1", re.ASCII)


class _Kind:
    """A type of numbers: numpy's `dtype`."""

    def __init__(self, kind: str, *_: Any) -> None:
        self.kind, self.order = str(kind).lstrip("<>=|"), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def read(self, content: object, shape: object, *, by_columns: bool = False) -> NDArray[Any]:
        if not KIND.fullmatch(self.kind) or not isinstance(content, bytes | bytearray):
            raise pickle.UnpicklingError("an array of other than numbers")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise pickle.UnpicklingError("an array without shape")
        if len(content) != math.prod(shape) * int(self.kind[1:]):
            raise pickle.UnpicklingError("an array whose numbers do not fill its shape")
        numbers = np.frombuffer(content, np.dtype(self.order + self.kind))
        return numbers.reshape(shape, order="F" if by_columns else "C")


class _Array:
    """An array: numpy's `ndarray` and what makes one."""

    values: NDArray[Any] | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if isinstance(content, str):  # of Python 2
            content = content.encode("latin1")
        self.values = kind.read(content, shape, by_columns=bool(by_columns))


def _from_buffer(content: object, kind: _Kind, shape: object, order: str = "C") -> _Array:
    array = _Array()
    array.values = kind.read(content, shape, by_columns=order == "F")
    return array


def _scalar(kind: _Kind, content: object = b"") -> Any:
    return kind.read(content.encode("latin1") if isinstance(content, str) else content, ()).item()


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # as old protocols write it


_OF_NUMPY: dict[str, dict[str, Any]] = {
    "multiarray": {"_reconstruct": _Array, "scalar": _scalar},
    "numeric": {"_frombuffer": _from_buffer},
}
NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, names in _OF_NUMPY.items()
        for name, stand_in in names.items()
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise UnsafeFileError(f"it holds more than arrays, {module}.{name}")
        return NAMES[module, name]


def load_arrays(path: Path) -> Any:
    """The content of a pickle of dicts, plain values and numpy arrays, which become tensors.

    Raises:
        UnsafeFileError: it holds anything else, or is damaged.
    """
    content = read_bytes(path, WeightsError)
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in MEMO and int(argument or 0) > MAX_MEMO:  # a table that long would be made
                raise UnsafeFileError("the pickle is damaged (it numbers more objects than it holds)")
        return _as_tensors(_Unpickler(io.BytesIO(content), encoding="latin1").load())
    except UnsafeFileError:
        raise
    except Exception as error:  # a damaged pickle raises nearly every kind
        raise UnsafeFileError(f"the pickle is damaged ({type(error).__name__}: {error})"[:300]) from error


def _as_tensors(value: Any, depth: int = 0) -> Any:
    """Arrays as tensors, in dicts of dicts (deeper than weights ever are, nothing is looked at)."""
    if isinstance(value, _Array) and value.values is not None:
        return torch.from_numpy(value.values.astype(value.values.dtype.newbyteorder("="), order="C"))
    if isinstance(value, dict) and depth < 5:
        return {key: _as_tensors(part, depth + 1) for key, part in value.items()}
    return value
