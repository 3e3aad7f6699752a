"""Inspect torch files before reading anything in them.

They are zip archives that contain a pickle. A pickle may call any function, so it is loaded with
`weights_only`; an archive may unpack to more than fits into memory, so its sizes are added up first. (torch
itself does not compress.)
"""

from __future__ import annotations

import json
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from fcos.errors import WeightsError
from fcos.files import check_regular, first_line_of, reason_of

ZIP_START = b"PK\x03\x04"
# How pickles begin (protocols 2 to 5).
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
MAX_JSON_BYTES = 16 * 2**20  # of a model file's metadata


class UnsafeFileError(ValueError):
    """Why a file is rejected; the message continues "cannot be read: "."""


def parse_json(text: str | bytes, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """JSON from a model file, in bounded memory.

    Raises:
        UnsafeFileError: it is not JSON, nested too deeply, or larger than `max_bytes`.
    """
    if len(text) > max_bytes:
        raise UnsafeFileError(f"{len(text) / 2**20:,.0f} MB of JSON; the limit is {max_bytes / 2**20:,.0f}")
    try:
        return json.loads(text)
    except RecursionError:
        raise UnsafeFileError("JSON that is nested too deeply") from None
    except ValueError as error:  # not JSON, not UTF-8, a number with thousands of digits
        raise UnsafeFileError(str(error)) from None


def check_archive(path: Path) -> list[str]:
    """The names of the parts of a zip archive.

    Raises:
        UnsafeFileError: it is damaged or compressed, or claims to unpack to more than its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnsafeFileError(f"the archive is damaged ({reason_of(error)})") from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise UnsafeFileError("the archive is compressed, which torch's own files never are")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise UnsafeFileError("the archive claims more content than the size of the file")
    names = [part.filename for part in parts]
    if len(set(names)) < len(names):
        raise UnsafeFileError("the archive contains two entries with the same name")
    return names


def read_archive(path: Path) -> Any:
    """The content of a file written by `torch.save`: tensors and plain values, never code.

    Raises:
        UnsafeFileError: it would run code, or was not written by `torch.save`.
        WeightsError: the file does not exist.
    """
    check_regular(path, WeightsError)
    with path.open("rb") as file:
        start = file.read(4)
    if start == ZIP_START:
        names = check_archive(path)
        if any(name.endswith("/constants.pkl") for name in names):
            raise UnsafeFileError("it is a TorchScript program, which would have to be executed")
    elif not start.startswith(PICKLE_STARTS):
        kind = "an old torch archive (tar)" if tarfile.is_tarfile(path) else "not a torch.save file"
        raise UnsafeFileError(f"it is {kind}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickles, which are rejected anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # torch and zipfile each raise their own kinds
        raise UnsafeFileError(f"{type(error).__name__}: {first_line_of(error)}"[:300]) from error
    return content
