"""Choose the folder of a run, and lock it so that only one training at a time writes to it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fcos.config import TrainConfig
from fcos.errors import ConfigError, OutputError
from fcos.files import check_writable, explained, reason_of

LARGEST_GAP = 10  # between run numbers: birds-640 is another name, not a run of birds
LOCK_NAME = ".lock"
LEFT_BY_KILL = ".partial-*"  # partial files of `files.written`


def find_run_folder(wanted: Path, *, load: bool, exact: bool = False) -> Path:
    """The folder to write to: a new one (`name`, `name-2`, ...).

    With `load`, it is the newest that can be resumed or, with `exact`, `wanted` itself.
    """
    if wanted.exists() and not wanted.is_dir():
        raise ConfigError(
            f"{wanted} is a file",
            where='setting "run_folder"',
            fix="give a folder, or an unused name",
        )
    if not load:
        return wanted if is_fresh(wanted) else next_run_folder(wanted)
    if exact:
        return wanted
    with_checkpoint = [
        folder for folder in numbered_folders(wanted).values() if (folder / "last.ckpt").is_file()
    ]
    return max(with_checkpoint, key=lambda folder: (folder / "last.ckpt").stat().st_mtime, default=wanted)


def next_run_folder(wanted: Path) -> Path:
    """The folder with the next unused number."""
    return wanted.with_name(f"{wanted.name}-{max(numbered_folders(wanted), default=1) + 1}")


def numbered_folders(wanted: Path) -> dict[int, Path]:
    """Existing folders `name` (1), `name-2`, `name-3`, ..., even if some in between were deleted."""
    found: dict[int, Path] = {}
    number = 1
    while number <= max(found, default=1) + LARGEST_GAP:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if folder.exists():
            found[number] = folder
        number += 1
    return found


def is_fresh(folder: Path) -> bool:
    """Whether a folder is empty or does not exist."""
    return not folder.exists() or all(entry.name == LOCK_NAME for entry in folder.iterdir())


def is_named_exactly(config: TrainConfig) -> bool:
    """Whether `run_folder` is one particular run: on the command line, in Python, or in its own config.

    In an ordinary train.json, and as the default, it refers to all runs started from it.
    """
    origin = config.origin("run_folder")
    in_train_json = origin.startswith("file ") and not origin.endswith("which lies in the run folder")
    return not (in_train_json or origin == "default")


def check_run_folder(config: TrainConfig) -> None:
    """Reject a run folder that cannot be written to, before training starts."""
    wanted = Path(config.run_folder)
    check_writable(find_run_folder(wanted, load=config.load, exact=is_named_exactly(config)))


class FolderInUseError(OutputError):
    """Another training writes to the run folder."""


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Create the folder, and lock it against other processes; the lock ends with this process.

    Raises:
        FolderInUseError: another process is training in it.
        OutputError: it cannot be written.
    """
    path = folder / LOCK_NAME
    with explained(folder, "choose another run_folder that you can write to"):
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path)
    try:
        for partial in folder.glob(LEFT_BY_KILL):
            shutil.rmtree(partial, ignore_errors=True)
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file; it may stay
            path.unlink()
        file.close()
        with suppress(OSError):
            folder.rmdir()  # if nothing was written


def _open_locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file)
        except (PermissionError, BlockingIOError) as error:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise FolderInUseError(
                f"another training run is using this folder{f': {owner}' if owner else ''}",
                where=str(path.parent),
                fix="wait for it to finish, stop it, or set another run_folder",
            ) from error
        except OSError as error:
            print(
                f"warning: {path.parent} cannot be locked ({reason_of(error)}): "
                "do not start another training run in it",
                file=sys.stderr,
            )
        # The previous owner may have removed the file between opening and locking.
        if _is_at(file, path):
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> None:
    """Lock a file, or raise an error; the lock ends with this process, and is not inherited by workers."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(2**20)  # past the text, which other processes read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
