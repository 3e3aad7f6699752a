"""What an annotation format is (`Format`), and the registry of them.

A format is a module of `fcos.data.formats` with one object `FORMAT`; commands, settings, recognition, splits,
conversion and the data check take it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from fcos.data.annotations import Annotations, Record
from fcos.format_names import FORMAT_NAMES

if TYPE_CHECKING:
    from fcos.data.splits import Splits


class FolderSign(NamedTuple):
    """What folders of a format hold; of the signs of all formats the strongest that holds decides."""

    strength: int
    holds: Callable[[Path], bool]


class TextSign(NamedTuple):
    """The same for text files, by path, folder of the images, and the lines that are not blank."""

    strength: int
    holds: Callable[[Path, Path | None, list[str]], bool]


class BoxPlace(NamedTuple):
    """Where a box stands in its file, and what the file says of its class where that is not known."""

    where: str
    unknown_class: str


@dataclass(frozen=True)
class Format:
    """One format of annotations.

    Attributes:
        name: of the module; what `--format` and `data_format` take.
        looks_like: its files in a few words, for messages.
        suffixes: of files that may be given as source, lower case. One that several formats have is a text
            file (``.txt``), told by `text_signs`.
        read: ``(source, *, root=None, names=None)``; `root` is the folder of the images, `names` the class
            names in the order of the labels.
        folder_signs, text_signs: what tells it from other formats.
        files: the annotation files in a folder, each of which is a source; their names tell the splits.
        splits: the splits of a folder, for a format without `files`.
        class_names: how many of its classes a source names.
        first_class_id: where sources number the classes; None: they have names or ids of their own.
        in_pixels: whether boxes are written in pixels, not as fractions of the image.
        box_word: what a box is called in its file.
        box_places: where each box stands, if there is more to say than its number in its image.
        write: ``(annotations, out, *, root=None, copy_images=False)``; images below `root` are named relative
            to it. None: the format is only read.
        written_suffix: of the file that is written; empty: it is a folder that holds the images too.
        names_beside: where the class names are written, if apart from the boxes.
        keeps: which of "crowd", "difficult" and "category ids" it can hold.
    """

    name: str
    looks_like: str
    suffixes: tuple[str, ...]
    read: Callable[..., Annotations]
    folder_signs: tuple[FolderSign, ...]
    text_signs: tuple[TextSign, ...] = ()
    files: Callable[[Path], Sequence[Path]] | None = None
    splits: Callable[[Path], Splits] | None = None
    class_names: Literal["none", "some", "all"] = "some"
    first_class_id: int | None = None
    in_pixels: bool = True
    box_word: str = "box"
    box_places: Callable[[Annotations], Callable[[Record, int], BoxPlace | None]] | None = None
    write: Callable[..., None] | None = None
    written_suffix: str = ""
    names_beside: Callable[[Path], Path] | None = None
    keeps: frozenset[str] = field(default=frozenset())


def format_named(name: str) -> Format:
    """The format of this name."""
    found = import_module(f"fcos.data.formats.{name}").FORMAT
    assert isinstance(found, Format)
    return found


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format there is."""
    return tuple(map(format_named, FORMAT_NAMES))
