"""A cache of annotations as arrays in the user's cache folder, so that a large file is parsed only once.

A cache file holds arrays as they are in memory and is mapped, not read: it opens at once, only what is used
comes into memory, and all processes of a machine share it. It is valid for one path, size and moment of
change of the annotation file; a file that is not, or is damaged (a checksum tells), is written anew.
Deleting the folder costs nothing but time.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER_VARIABLE = "FCOS_CACHE"
MIN_BYTES = 8 * 2**20  # of an annotation file; smaller ones are read in a moment
ALIGNMENT = 64
VERSION = 3  # of the layout of the file
CHECKSUM_BYTES = 4
ROWS_AT_ONCE = 2**14
MAX_HEAD_BYTES = 2**26

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Taken:
    """An array in another order, which is made only as it is written: memory never holds it twice."""

    array: NDArray[Any]
    order: NDArray[np.int64]

    def pieces(self) -> Iterator[NDArray[Any]]:
        """Some rows at a time."""
        for first in range(0, len(self.order), ROWS_AT_ONCE):
            yield self.array.take(self.order[first : first + ROWS_AT_ONCE], 0)


ToKeep = Mapping[str, NDArray[Any] | Taken]


def cache_folder() -> Path:
    """Where cache files are: $FCOS_CACHE, else `fcos` beside the caches of PyTorch and Hugging Face."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcos"


def cached(
    source: Path, how: dict[str, Any], read: Callable[[], tuple[ToKeep, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and words made from a file: from the cache where it has them, else by `read`.

    Args:
        source: the file.
        how: what else the result depends on; plain values.
        read: makes arrays, and plain values that go with them.
    """
    status = source.stat()
    if status.st_size < MIN_BYTES:
        return _in_memory(*read())
    # One file for a source read in one way, whatever became of it meanwhile: old ones do not pile up.
    what = json.dumps([str(source.resolve()), how])
    file = cache_folder() / f"{source.stem}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.arrays"
    state = [VERSION, what, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if (found := _load(file, state)) is not None:
        return found
    arrays, words = read()
    with suppress(OSError):  # no cache, or no room in it: the next time takes as long as this one
        _save(file, state, arrays, words)
    # The mapped arrays from here on: shared with other processes, and the rest of `arrays` is let go.
    return _load(file, state) or _in_memory(arrays, words)


def _in_memory(arrays: ToKeep, words: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    return {
        name: it.array.take(it.order, 0) if isinstance(it, Taken) else it for name, it in arrays.items()
    }, words


def _save(file: Path, state: list[Any], arrays: ToKeep, words: dict[str, Any]) -> None:
    """Write beside it, then rename: a reader finds the old file or the new one, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    places, end = {}, 0
    for name, it in arrays.items():
        array = it.array if isinstance(it, Taken) else it
        places[name] = [array.dtype.str, array.shape, end]
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    head = json.dumps({"state": state, "words": words, "arrays": places, "bytes": end}).encode()
    head += b" " * (-(len(head) + 1) % ALIGNMENT) + b"\n"
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            checksum = zlib.crc32(head)
            out.write(head)
            for it in arrays.values():
                for piece in it.pieces() if isinstance(it, Taken) else [it]:
                    content = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
                    out.write(content)
                    checksum = zlib.crc32(content, checksum)
                gap = bytes(-out.tell() % ALIGNMENT)
                out.write(gap)
                checksum = zlib.crc32(gap, checksum)
            out.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)


def _load(file: Path, state: list[Any]) -> tuple[Arrays, dict[str, Any]] | None:
    """The content of a cache file, mapped; None if there is none, or it is of another state, or damaged."""
    try:
        with file.open("rb") as opened:
            content = json.loads(opened.readline(MAX_HEAD_BYTES))
            begin = opened.tell()
            end = begin + content["bytes"]
            if content["state"] != state or file.stat().st_size != end + CHECKSUM_BYTES:
                return None
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        if zlib.crc32(memoryview(mapped)[:end]) != int.from_bytes(mapped[end:], "little"):
            return None
        arrays = {
            name: np.frombuffer(mapped, dtype, int(np.prod(shape)), begin + place).reshape(shape)
            for name, (dtype, shape, place) in content["arrays"].items()
        }
        return arrays, content["words"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
