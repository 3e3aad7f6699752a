"""A cache of annotations as arrays in the user's cache folder, so that a large file is parsed only once.

A cache file is valid for one path, size and modification time of the annotation file; an invalid or damaged
one (by the checksums of the zip) is written again. The folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.errors import OutputError
from fcos.files import written

FOLDER_VARIABLE = "FCOS_CACHE"
MIN_BYTES = 8 * 2**20  # of an annotation file; smaller ones are parsed quickly
VERSION = 4  # of the contents of a cache file

Arrays = dict[str, NDArray[Any]]


def cache_folder() -> Path:
    """The folder of cache files: $FCOS_CACHE, or else `fcos` next to PyTorch's and Hugging Face's caches."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcos"


def cached(
    source: Path, how: dict[str, Any], read: Callable[[], tuple[Arrays, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and JSON values made from a file: from the cache if it has them, else by `read`.

    Args:
        how: everything else that the result depends on, as JSON values.
        read: makes the arrays, and JSON values that go with them.
    """
    status = source.stat()
    if status.st_size < MIN_BYTES:
        return read()
    # One cache file per source and `how`, even if the source has changed: old ones do not pile up.
    what = json.dumps([str(source.resolve()), how])
    file = cache_folder() / f"{source.stem}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.arrays"
    state = [VERSION, what, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if (found := _load(file, state)) is not None:
        return found
    arrays, words = read()
    # If the cache cannot be written, the file is parsed again next time.
    with suppress(OSError, OutputError), written(file) as partial, partial.open("wb") as out:
        head = np.array(json.dumps([state, words, list(arrays)]))
        np.savez(out, allow_pickle=False, head=head, **arrays)
    return arrays, words


def _load(file: Path, state: list[Any]) -> tuple[Arrays, dict[str, Any]] | None:
    """The content of a cache file; None if it is missing, outdated or damaged.

    ``except Exception`` because zipfile and numpy raise many kinds of error on damaged files.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
            found_state, words, names = json.loads(str(content["head"]))
            return ({name: content[name] for name in names}, words) if found_state == state else None
    except Exception:
        return None
