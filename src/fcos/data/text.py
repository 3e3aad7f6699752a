"""Annotation text: lines, numbers, and errors that list all faults of a source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fcos.errors import DatasetError
from fcos.files import read_text
from fcos.terminal import counted

MAX_SHOWN = 20


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line number (from 1) and text of every line that is not blank."""
    lines = enumerate(read_text(path).split("\n"), start=1)  # splitlines() also splits at U+2028 and others
    return [(number, line.strip()) for number, line in lines if line.strip()]


def number_text(value: float) -> str:
    """A coordinate without trailing zeros: ``12``, ``12.5``; six decimals at most."""
    text = f"{value:.6f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shown(lines: list[str]) -> str:
    """The first lines of many, indented to follow ``in:``, and the number of further lines."""
    more = len(lines) - MAX_SHOWN
    tail = [f"... and {more} more"] if more > 0 else []
    return "\n      ".join(lines[:MAX_SHOWN] + tail)


def several(folder: Path, what: str, files: Iterable[Path], fix: str) -> DatasetError:
    """The error for a folder with several candidates where there must be one."""
    names = ", ".join(str(file.relative_to(folder)) for file in files)
    return DatasetError(f"several files could {what}: {names}", where=str(folder), fix=fix)


class Faults:
    """Collects faults, so that a user sees all of them at once and not one per run.

    ``with faults.at(where):`` collects a ValueError raised in the block.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._where = ""

    def at(self, where: str) -> Faults:
        """Set the location of faults in the block that follows."""
        self._where = where
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, ValueError):
            return False
        self.add(self._where, error.what if isinstance(error, DatasetError) else str(error))
        return True

    def add(self, where: str, what: str) -> None:
        """Note one fault."""
        self._lines.append(f"{where}: {what}")

    def raise_any(self, thing: str, wrong: str, fix: str, *, things: str = "") -> None:
        """Raise one error for all faults, if there are any: "2 lines cannot be read"."""
        if self._lines:
            what = f"{counted(len(self._lines), thing, things)} {wrong}"
            raise DatasetError(what, where=shown(self._lines), fix=fix)
