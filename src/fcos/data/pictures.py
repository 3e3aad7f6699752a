"""Where the pictures of a data set are: suffixes, folders and names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fcos.data.annotations import Annotations
from fcos.data.text import Faults
from fcos.errors import DatasetError

PICTURE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .tif .tiff .webp .gif .ppm .pgm .pbm .pnm .jp2 .avif .heic".split()
)


def is_picture(name: str | Path) -> bool:
    """Whether a file name ends as pictures do."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def folders_near(start: Path) -> list[Path]:
    """Folders that commonly hold the pictures of annotations in `start`, nearest first."""
    bases = [start, *start.absolute().parents[:3]]
    return [folder for base in bases for folder in (base, base / "images", base / "JPEGImages")]


def folders_of(source: Path) -> list[Path]:
    """Folders that may hold the pictures of an annotation file: near it, or called like its part.

    ``annotations/instances_val2017.json`` goes with ``val2017`` beside it, ``train.txt`` with
    ``images/train``.
    """
    part = source.stem.rsplit("_", 1)[-1]
    bases = [source.parent, source.absolute().parent.parent]
    return folders_near(source.parent) + [b / sub for b in bases for sub in (part, f"images/{part}")]


def check_root(root: Path | None) -> None:
    """Refuse a folder of pictures that is not there."""
    if root is not None and not root.is_dir():
        raise DatasetError(
            "the folder of pictures does not exist",
            where=str(root),
            fix="correct root_train / root_eval / --root",
        )


def find_root(folders: Iterable[Path], names: Iterable[str]) -> Path:
    """The first folder that holds one of the first names; the very first folder if none does."""
    folders = list(folders)
    some_names = [name for _, name in zip(range(10), names, strict=False)]
    for folder in folders:
        if any((folder / name).is_file() for name in some_names):
            return folder
    return folders[0]


class PictureFolder:
    """Finds pictures by their name without suffix; every folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_stem: dict[Path, dict[str, Path]] = {}

    def find(self, stem: str) -> Path | None:
        """The picture called `stem` (may hold subfolders) with any picture suffix."""
        place = self.folder / stem
        if place.parent not in self._by_stem:
            files = sorted(place.parent.iterdir()) if place.parent.is_dir() else []
            # Reversed: of cat.jpg and cat.png the first in the alphabet stays.
            self._by_stem[place.parent] = {f.stem: f for f in reversed(files) if is_picture(f)}
        return self._by_stem[place.parent].get(place.name)


def pictures_under(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if is_picture(path))


def common_root(annotations: Annotations) -> Path:
    """The deepest folder that holds every picture."""
    return Path(os.path.commonpath([os.path.abspath(record.path.parent) for record in annotations]))


def relative_name(path: Path, root: Path | None) -> str:
    """Name of a picture below `root` (with /), or its whole path if it is elsewhere."""
    absolute = Path(os.path.abspath(path))  # not resolve(): a linked picture is named by its link
    if root is not None and absolute.is_relative_to(os.path.abspath(root)):
        return absolute.relative_to(os.path.abspath(root)).as_posix()
    return absolute.as_posix()


def unique_stems(annotations: Annotations, root: Path | None = None) -> list[PurePosixPath]:
    """Each picture's name below `root`, checked to be unique without its suffix.

    VOC and YOLO tie a picture to its annotation file by that name, so ``a.jpg`` and ``a.png`` cannot both be.
    """
    root = root if root is not None else common_root(annotations)
    names: list[PurePosixPath] = []
    first_of: dict[PurePosixPath, Path] = {}
    faults = Faults()
    for record in annotations:
        name = PurePosixPath(relative_name(record.path, root).lstrip("/"))
        first = first_of.setdefault(name.with_suffix(""), record.path)
        if first is not record.path:
            faults.add(record.where, f"'{record.path}' would share its annotation file with '{first}'")
        names.append(name)
    faults.raise_any(
        "pictures have the same name without suffix", "rename the pictures, or remove duplicates"
    )
    return names


def place_pictures(pairs: Iterable[tuple[Path, Path]], *, copy: bool) -> None:
    """Link (or copy) pictures, (from, to), into a data set that must hold them itself."""
    pairs = list(pairs)
    faults = Faults()
    for source, _ in pairs:
        if not source.is_file():
            faults.add(str(source), "not found")
    faults.raise_any("pictures are missing", "give the folder of pictures with --root")
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source.absolute())
