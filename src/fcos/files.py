"""Files: text is UTF-8, hidden files are ignored, and writes are atomic."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from fcos.errors import DatasetError, FcosError, OutputError

MAX_TEXT_BYTES = 4 * 2**30
# Folders of operating systems and network drives, which hold no user data. (Others are hidden.)
SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
)
# In the output folder of `fcos predict`: a line of JSON with the name and size of each file written.
WRITTEN_FILE = ".fcos-predict"
# Messages of libraries that write for us when the disk is full, in errors other than OSError.
WRITE_FAILURES = (
    *("No space left on device", "PytorchStreamWriter failed", "os error", "file write failed"),
    *("iostream error", "unexpected pos"),
)


# Reading ----------------------------------------------------------------------------------------------------


def check_regular(path: Path, kind: type[FcosError] = DatasetError) -> None:
    """Reject missing paths and anything but a regular file: opening a pipe or a device may block forever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        if os.path.islink(path):  # Path.is_symlink raises where a name is too long
            raise kind(
                "this is a broken link", where=str(path), fix="restore its target, or remove the link"
            ) from error
        raise kind(
            f"cannot be read: {reason_of(error)}", where=str(path), fix="correct the path of the file"
        ) from error
    if not stat.S_ISREG(mode):
        raise kind(f"this is {_describe(mode)}, not a file", where=str(path), fix="give a file")


def read_bytes(path: Path, kind: type[FcosError] = DatasetError, *, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        FcosError: of the given kind; it cannot be read, or is larger than `max_bytes`.
    """
    check_regular(path, kind)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise kind(
                f"the file has {size / 2**20:,.0f} MB; the limit is {max_bytes / 2**20:,.0f}",
                where=str(path),
                fix="give another file, or split this one",
            )
        return path.read_bytes()
    except OSError as error:
        raise kind(
            f"cannot be read: {reason_of(error)}", where=str(path), fix="correct the path of the file"
        ) from error


def read_text(path: Path, kind: type[FcosError] = DatasetError, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The content of a UTF-8 file, whatever the locale; a byte order mark (Windows editors) is dropped.

    Raises:
        FcosError: of the given kind; it cannot be read, is not UTF-8, or is larger than `max_bytes`.
    """
    try:
        text = read_bytes(path, kind, max_bytes=max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind("not a UTF-8 text file", where=str(path), fix="save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, kind: Any, what: str, fix: str) -> Any:
    """The content of a JSON file as a type that msgspec knows.

    Raises:
        DatasetError: it is not `what`, or damaged.
    """
    import msgspec  # `fcos --help` does without

    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"not {what}, or damaged: {error}", where=str(path), fix=fix) from error


# Listing ----------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> None:
    """Extract a tar file; from Python 3.10.12 and 3.11.4 on, nothing in it can get outside of the folder."""
    checked: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as opened:
        opened.extractall(folder, **checked)


def without_part(path: str) -> str:
    """The file of a path that may name a part of it: ``data.yaml:val`` is ``data.yaml``."""
    return path if os.path.exists(path) else re.sub(r"(\.[A-Za-z]+):\w+$", r"\1", path)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (``.ipynb_checkpoints``, ``._0.jpg``) or the system's."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def files_below(folder: Path, *suffixes: str, folders_too: bool = False) -> Iterator[Path]:
    """All files below a folder in sorted order, except those that are hidden or in hidden folders.

    Broken links, pipes and devices are included: opening one reports what is wrong. A linked folder is
    followed, unless its files are listed anyway or it contains the folder itself.

    Args:
        folder: its own name may be hidden.
        suffixes: with the dot, in lower case; without any, all files. The case of a file's suffix is ignored.
        folders_too: also folders with such a suffix, for callers that must not miss them.

    Raises:
        DatasetError: a folder cannot be read, so its files would be missed.
    """
    wanted, top, linked = frozenset(suffixes), Path(os.path.realpath(folder)), set[Path]()

    def is_new(path: Path) -> bool:
        if not path.is_symlink():
            return True
        target = Path(os.path.realpath(path))
        is_listed = target in linked or target.is_relative_to(top) or top.is_relative_to(target)
        linked.add(target)
        return not is_listed

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise DatasetError(
                f"the folder cannot be read: {reason_of(error)}",
                where=str(error.filename),
                fix="change its permissions, or move it elsewhere",
            ) from error

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name) and is_new(Path(parent, name)))
        for name in sorted([*names, *folders] if folders_too else names):
            if not is_hidden(name) and (not wanted or os.path.splitext(name)[1].lower() in wanted):
                yield Path(parent, name)


def predicted_files(out: Path) -> dict[str, int | None]:
    """The files that `fcos predict` wrote to its output folder, with their sizes; None: of any size."""
    sizes: dict[str, int | None] = {}
    try:
        lines = (out / WRITTEN_FILE).read_bytes().splitlines()
    except OSError:
        return sizes
    for line in lines:
        with suppress(ValueError):  # the end of a line is missing: the process was killed
            name, size = json.loads(line)
            sizes[name] = size
    return sizes


def is_run(folder: Path) -> bool:
    """Whether the config.json of this folder is one of ours: other programs have such a file too."""
    file = folder / "config.json"
    return file.is_file() and b'"list_train"' in file.read_bytes()


def data_below(folder: Path, *suffixes: str) -> Iterator[Path]:
    """`files_below` without files that fcos wrote: drawn copies, crops, predicted labels and plots."""
    sizes_of, is_of_run = cache(predicted_files), cache(is_run)

    def is_written(path: Path) -> bool:
        for out in path.parents:
            if sizes := sizes_of(out):
                name = path.relative_to(out)
                if sizes.get(name.as_posix(), -1) in (None, path.lstat().st_size):
                    return True
                if out != folder and name.parts[0].startswith(("crops", "labels_")):
                    return True
            if out == folder:
                break
        return path.name == "curves.png" and is_of_run(path.parent)

    return (path for path in files_below(folder, *suffixes) if not is_written(path))


# Writing ----------------------------------------------------------------------------------------------------


@contextmanager
def written(path: Path, *, fix: str = "") -> Iterator[Path]:
    """Yield a temporary path, which replaces `path` when the block ends without error.

    Until then `path` is unchanged: a killed process or a full disk leaves no partial file or folder.
    The temporary path has the same name, in another folder.

    Args:
        path: parent folders are created.
        fix: what else to do if it cannot be written.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(os.path.realpath(path))  # of a link, replace the target
    with explained(path, fix):
        if path.exists() and not (path.is_file() or path.is_dir()):  # /dev/null, /dev/stdout, a pipe
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".partial-", dir=path.parent))
        try:
            partial = beside / path.name
            yield partial
            _put_in_place(partial, path, beside)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; a lone surrogate becomes ``?``."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with written(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    import msgspec

    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=1))


def check_writable(path: Path) -> None:
    """Raise an error if output cannot be written: before the work, not after it.

    Args:
        path: a file or folder, which may already exist; nothing is left behind.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not (place.is_file() or place.is_dir()):
        return
    if not place.is_dir():
        place = place.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    with explained(path), tempfile.TemporaryDirectory(prefix=".partial-", dir=place):
        pass


def reason_of(error: Exception) -> str:
    """The operating system's error message, without number and path."""
    if "iostream error" in str(error):  # all that C++ says
        return "the disk is full, or the folder is read-only"
    return getattr(error, "strerror", None) or str(error)


def first_line_of(error: Exception) -> str:
    """The first line of a library's error message, or the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _put_in_place(partial: Path, path: Path, beside: Path) -> None:
    if partial.is_file():
        with partial.open("rb") as file:
            os.fsync(file.fileno())
    if path.is_dir():
        if not partial.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # os.replace cannot replace a folder with another.
        os.replace(path, beside / f".former-{path.name}"[:255])
    os.replace(partial, path)


@contextmanager
def explained(path: Path, fix: str = "") -> Iterator[None]:
    """Turn errors in writing to a path into an `OutputError` with the reason."""
    try:
        yield
    except OutputError as error:  # about a file in the temporary folder
        raise OutputError(error.what, where=str(path), fix=error.fix) from error
    except FcosError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not any(word in str(error) for word in WRITE_FAILURES):
            raise
        raise OutputError(
            f"cannot be written: {reason_of(error)}",
            where=str(path),
            fix=fix or "free some disk space, or choose a folder that you can write to",
        ) from error


def _describe(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
