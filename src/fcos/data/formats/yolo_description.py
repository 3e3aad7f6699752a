"""The description of a YOLO data set: ``data.yaml``, darknet's ``obj.data``, and files of class names.

Class names are what is written: YAML's own reading makes True of yes, 1 of 01 and 1.5 of 1.50, so scalars
stay text here. In all of these files the place of a name is its class id, so ``background`` is a class too.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fcos.data.annotations import MAX_NAME_BYTES
from fcos.data.image_files import names_in
from fcos.data.names import check_names, read_all_names
from fcos.data.numbers import cut, described, whole_number
from fcos.data.text import read_lines
from fcos.errors import DatasetError
from fcos.files import read_text

NAME_FILES = ("obj.names", "classes.txt", "classes.names", "predefined_classes.txt", "_darknet.labels")
YAML_SUFFIXES = (".yaml", ".yml")
USUAL_YAMLS = ("data", "dataset")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
NOTHING = ("", "null", "~")
MAX_YAML_BYTES = 2**20  # the largest known have 20,000 names; without libyaml a megabyte takes ten seconds
_BaseLoader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_NAMES_KEY = re.compile(r"^(?:\{\s*)?['\"]?names['\"]?\s*:", re.MULTILINE)


@dataclass(frozen=True)
class Description:
    """A ``data.yaml`` or ``obj.data``.

    Attributes:
        class_names: by class id; None where the file has none.
        splits: the sources of each part that it has, as written: "train", "val", "test".
        base: folder that they start from, as written.
        num_keypoint_values: numbers behind the box in each line (``kpt_shape``), or None.
    """

    file: Path
    class_names: list[str] | None
    splits: dict[str, list[str]] = field(default_factory=dict)
    base: str = "."
    num_keypoint_values: int | None = None


def is_name_file(name: str) -> bool:
    """Whether a txt file of this name holds class names, not labels of an image."""
    return name.lower() in NAME_FILES


def split_source(source: Path) -> tuple[Path, str]:
    """``data.yaml:val`` -> the file and the split; without one, ``train``."""
    file, colon, split = source.name.rpartition(":")
    if colon and file.lower().endswith((*YAML_SUFFIXES, ".data")):
        return source.with_name(file), next((key for key, words in SPLITS.items() if split in words), split)
    return source, "train"


def find_description(folder: Path) -> Path | None:
    """The file that describes a folder: ``data.yaml``, else a yaml with class names, else ``obj.data``.

    Raises:
        DatasetError: several could be meant.
    """
    names = names_in(folder)
    yamls = [folder / name for name in names if name.lower().endswith(YAML_SUFFIXES)]
    usual = [file for file in yamls if file.stem.lower() in USUAL_YAMLS]
    candidates = usual or [file for file in yamls if _NAMES_KEY.search(_beginning(file))]
    candidates = candidates or [folder / name for name in names if name.lower() == "obj.data"]
    return _only(folder, candidates, "describe the data set")


def read_description(file: Path) -> Description:
    """A ``data.yaml`` or ``obj.data``."""
    return _read_darknet(file) if file.suffix.lower() == ".data" else read_yaml(file)


def names_near(folder: Path) -> Description | None:
    """Class names (and key points) from the folder or the two above it."""
    if (found := _names_in(folder)) is not None:
        return found
    for place in list(folder.absolute().parents)[:2]:
        try:
            found = _names_in(place)
        except DatasetError:  # what lies there may be of other data sets
            continue
        if found is not None:
            return found
    return None


def _names_in(folder: Path) -> Description | None:
    described_by = find_description(folder)
    if described_by is not None and described_by.suffix.lower() != ".data":
        return read_yaml(described_by)
    files = [folder / name for name in names_in(folder) if is_name_file(name)]
    name_file = _only(folder, files, "hold the class names")
    return None if name_file is None else Description(name_file, read_all_names(name_file))


def read_yaml(file: Path) -> Description:
    """A ``data.yaml``; everything in it that decides what labels mean is checked."""
    try:
        content = yaml.load(read_text(file, max_bytes=MAX_YAML_BYTES), _TextLoader)
    except yaml.YAMLError as error:
        raise DatasetError(f"not YAML: {error}", where=str(file), fix="correct the file") from error
    except RecursionError:
        raise DatasetError("not YAML: nested too deeply", where=str(file), fix="correct the file") from None
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(
            "not a YOLO data file: no 'names'", where=str(file), fix="it needs 'train', 'val' and 'names'"
        )
    class_names = _class_names(file, content["names"])
    if content.get("nc", "") not in NOTHING and str(content["nc"]) != str(len(class_names)):
        raise DatasetError(
            f"'nc' is {cut(str(content['nc']))}, but 'names' has {len(class_names)}",
            where=str(file),
            fix="correct 'nc' or 'names'",
        )
    splits = {key: _sources(file, content, key) for key in SPLITS}
    return Description(
        file,
        class_names,
        {key: sources for key, sources in splits.items() if sources},
        _text(file, "path", content.get("path", "")) or ".",
        _num_keypoint_values(file, content.get("kpt_shape", "")),
    )


class _TextLoader(_BaseLoader):  # type: ignore[misc]
    """Every scalar as it is written; a key that appears twice is refused, as the first would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if isinstance(node, yaml.MappingNode) and len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key appears twice", node.start_mark)
        return mapping


def _class_names(file: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        try:
            by_id = {whole_number(key): name for key, name in names.items()}
        except ValueError:
            by_id = {}
        if sorted(by_id) != list(range(len(names))):
            raise DatasetError(
                "'names' must number the classes 0, 1, 2, ...", where=str(file), fix="add the missing ones"
            )
        names = [by_id[class_id] for class_id in range(len(names))]
    if not isinstance(names, list):
        raise DatasetError(
            f"'names' is {described(names)}",
            where=str(file),
            fix="write names: [cat, dog], or 0: cat, 1: dog",
        )
    for class_id, name in enumerate(names):
        if not isinstance(name, str):
            raise DatasetError(
                f"the name of class {class_id} is {described(name)}", where=str(file), fix="write a string"
            )
    check_names(names, where=str(file))
    return names


def _sources(file: Path, content: dict[str, Any], split: str) -> list[str]:
    """What the file names for a split, under any of the words for it."""
    found = [content[word] for word in SPLITS[split] if content.get(word, "") not in NOTHING]
    if len(found) > 1 and found[0] != found[1]:
        raise DatasetError(
            f"{' and '.join(word for word in SPLITS[split] if word in content)} disagree",
            where=str(file),
            fix="keep one of them",
        )
    sources = found[0] if found else []
    return [_text(file, split, source) for source in (sources if isinstance(sources, list) else [sources])]


def _text(file: Path, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"'{key}' is {described(value)}, not a path", where=str(file), fix="write a path")
    return "" if value in NOTHING else value


def _num_keypoint_values(file: Path, shape: Any) -> int | None:
    if shape in NOTHING:
        return None
    try:
        count, values = map(whole_number, shape)
        if isinstance(shape, str) or count < 1 or values not in (2, 3):
            raise ValueError
    except (TypeError, ValueError):
        raise DatasetError(
            "'kpt_shape' is not [number of key points, 2 or 3]", where=str(file), fix="correct it"
        ) from None
    return count * values


def _read_darknet(file: Path) -> Description:
    """``obj.data``: lines ``key = value``, with paths relative to where darknet was started."""
    entries = [line.partition("=") for _, line in read_lines(file)]
    settings = {key.strip(): value.strip() for key, _, value in entries}
    name_file = existing(file.parent, settings.get("names") or "obj.names")
    if name_file is None and settings.get("names"):
        raise DatasetError(
            f"the file of class names '{settings['names']}' does not exist",
            where=str(file),
            fix="correct 'names = ...'",
        )
    names = read_all_names(name_file) if name_file else None
    if names and "classes" in settings and settings["classes"] != str(len(names)):
        raise DatasetError(
            f"'classes' is {cut(settings['classes'])}, but '{name_file}' has {len(names)}",
            where=str(file),
            fix="correct one of them",
        )
    splits = {
        key: next((settings[word] for word in words if settings.get(word)), "")
        for key, words in SPLITS.items()
    }
    splits["train"] = splits["train"] or "train.txt"
    return Description(file, names, {key: [source] for key, source in splits.items() if source})


def existing(base: Path, name: str, *, words: tuple[str, ...] = ()) -> Path | None:
    """``base/name``; where that is not there, `name` without leading folders, which are of another machine.

    Of a folder two parts must be left (``images/train``), or a word for its split: just any folder called
    ``images`` may hold another part.
    """
    if (
        len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES
    ):  # each of its thousands of folders would be tried
        return None
    parts = Path(name).parts or (".",)
    named = [part for part in parts if part not in ("..", ".", os.sep)]
    for start in range(len(parts)):
        path = base / Path(*parts[start:])
        left = [part for part in parts[start:] if part not in ("..", ".", os.sep)]
        certain = len(left) in (len(named), *range(2, len(named))) or any(
            word in re.findall("[a-z]+", left[0].lower()) for word in words if left
        )
        if os.path.isfile(path) or (certain and os.path.isdir(path)):
            return path
    return existing(base, name.replace("\\", "/"), words=words) if "\\" in name else None  # of Windows


def _beginning(file: Path) -> str:
    try:
        return read_text(file, max_bytes=MAX_YAML_BYTES)
    except DatasetError:  # too large for names, or of another program
        return ""


def _only(folder: Path, files: list[Path], what: str) -> Path | None:
    """The one file there is; of several with the same content, the first."""
    if len(files) > 1 and len({read_text(file) for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise DatasetError(
            f"several files could {what}: {names}",
            where=str(folder),
            fix="keep only the right one, or give it instead of the folder",
        )
    return files[0] if files else None
