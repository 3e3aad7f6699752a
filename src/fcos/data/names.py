"""Class names: the file that lists them, and matching them with the names in annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import read_text


def read_names(name_file: Path) -> tuple[tuple[str, ...], bool]:
    """Class names, one a line, and whether the first line was ``background`` (it is left out).

    A blank line between names is refused: skipping it would shift the ids of all classes after it.
    """
    lines = [line.strip() for line in read_text(Path(name_file)).rstrip().splitlines()]
    faults = Faults()
    for number, line in enumerate(lines, start=1):
        if not line:
            faults.add(f"{name_file}, line {number}", "blank line between class names")
        elif line in lines[: number - 1]:
            faults.add(f"{name_file}, line {number}", f"class '{line}' stands twice")
    faults.raise_any("lines are not class names", "write one class name a line, first line 'background'")
    had_background = bool(lines) and lines[0].lower() in ("background", "__background__")
    names = tuple(lines[1:] if had_background else lines)
    if not names:
        raise DatasetError("no class names", where=str(name_file), fix="write one class name a line")
    return names, had_background


def write_names(names: Sequence[str], out: Path) -> None:
    """Write a name file as the seed has it: first line ``background``."""
    out.write_text("\n".join(["background", *names]) + "\n", encoding="utf-8")


def match_names(found: Sequence[str], names: Sequence[str], *, where: str) -> list[int]:
    """Label of each class that an annotation file names, when the names are given from outside.

    Matching is by name, so a training and an evaluation file may order their classes differently.
    """
    unknown = [name for name in found if name not in names]
    if unknown:
        raise DatasetError(
            f"classes that are not among the given names: {', '.join(map(repr, unknown))}",
            where=where,
            fix=f"add them to the name file, or correct the annotations (the names are {', '.join(names)})",
        )
    return [list(names).index(name) for name in found]
