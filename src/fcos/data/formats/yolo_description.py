"""The description of a YOLO data set: ``data.yaml``, darknet's ``obj.data``, and files of class names.

Class names are read literally: YAML itself turns yes into True, 01 into 1 and 1.50 into 1.5, so scalars stay
text here. In all of these files the position of a name is its class id, so ``background`` is a class too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from fcos.data.annotations import MAX_NAME_BYTES
from fcos.data.image_files import folders_like, names_in, slashed
from fcos.data.names import check_names, read_all_names
from fcos.data.numbers import cut
from fcos.data.splits import EVAL_WORDS, TEST_WORDS, TRAIN_WORDS, words_of
from fcos.data.text import read_lines, several
from fcos.errors import DatasetError
from fcos.files import read_text
from fcos.terminal import counted

NAME_FILES = ("obj.names", "classes.txt", "classes.names", "predefined_classes.txt", "_darknet.labels")
YAML_SUFFIXES = (".yaml", ".yml")
USUAL_YAMLS = ("data", "dataset")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
NOTHING = ("", "null", "~")
MAX_YAML_BYTES = 2**20  # the largest known files have 20,000 names; without libyaml 1 MB takes ten seconds
# `eval = coco` is a kind of evaluation, not a split.
_DARKNET_KEYS = ("classes", "names", "eval", *(word for words in SPLITS.values() for word in words))
_BaseLoader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_NAMES_KEY = re.compile(r"^(?:\{\s*)?['\"]?names['\"]?\s*:", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Description:
    """A ``data.yaml`` or ``obj.data``, or only a file of names."""

    file: Path
    class_names: list[str] | None  # by class id
    splits: dict[str, list[str]] = field(default_factory=dict)  # sources as written, of train, val and test
    base: str = "."  # folder that they are relative to, as written
    num_keypoint_values: int | None = None  # numbers after the box in each line (``kpt_shape``)
    notes: tuple[str, ...] = ()  # on splits that differ from the file


def is_name_file(name: str) -> bool:
    """Whether a txt file with this name contains class names, not labels of an image."""
    return name.lower() in NAME_FILES


def split_source(source: Path) -> tuple[Path, str]:
    """``data.yaml:val`` -> the file and the split; without one, ``train``."""
    file, colon, split = source.name.rpartition(":")
    if colon and file.lower().endswith((*YAML_SUFFIXES, ".data")):
        word = split.lower()
        return source.with_name(file), next((key for key, words in SPLITS.items() if word in words), split)
    return source, "train"


def find_description(folder: Path) -> Path | None:
    """The file that describes a folder: ``data.yaml``, else a yaml with class names, else ``obj.data``.

    Raises:
        DatasetError: there are several candidates.
    """
    names = names_in(folder)
    yamls = [folder / name for name in names if name.lower().endswith(YAML_SUFFIXES)]
    usual = [file for file in yamls if file.stem.lower() in USUAL_YAMLS]
    candidates = usual or [file for file in yamls if _has_names(file)]
    candidates = candidates or [folder / name for name in names if name.lower() == "obj.data"]
    return _only(folder, candidates, "describe the data set")


def read_description(file: Path) -> Description:
    """A ``data.yaml`` or ``obj.data``; if the yaml has no ``val``, a validation folder next to it is used."""
    if file.suffix.lower() == ".data":
        return _read_darknet(file)
    found = read_yaml(file)
    if "train" not in found.splits or "val" in found.splits:
        return found
    bases = (file.parent / found.base, file.parent)
    places = [existing(base, entry) for entry in found.splits["train"] for base in bases]
    trained = [os.path.realpath(place) for place in places if place is not None]
    names = [name for word in SPLITS["val"] for name in (f"{word}/images", f"images/{word}")]
    beside = [(base, folder) for base in bases for name in names for folder in folders_like(base, name)]
    for base, folder in beside:
        if not any(map(Path(os.path.realpath(folder)).is_relative_to, trained)):
            name = folder.relative_to(base).as_posix()
            note = f"{file.name} has no 'val', so '{name}' next to 'train' is used"
            return replace(found, splits=found.splits | {"val": [name]}, notes=(*found.notes, note))
    return found


def names_near(folder: Path) -> Description | None:
    """Class names (and keypoints) from the folder, its parent or its grandparent."""
    for place in (folder, *list(folder.absolute().parents)[:2]):
        try:
            found = _names_in(place)
        except DatasetError:
            if place == folder:
                raise
            continue  # files further up may belong to other data sets
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


class DataYaml(msgspec.Struct):
    """The fields used of a ``data.yaml``."""

    names: list[str] | dict[int, str]
    path: str = "."
    train: str | list[str] = ""
    val: str | list[str] = ""
    valid: str | list[str] = ""
    validation: str | list[str] = ""
    test: str | list[str] = ""
    nc: int | None = None
    kpt_shape: tuple[Annotated[int, msgspec.Meta(ge=1)], Literal[2, 3]] | None = None


def read_yaml(file: Path) -> Description:
    """A ``data.yaml``; everything that determines the meaning of labels is checked."""
    try:
        content = yaml.load(read_text(file, max_bytes=MAX_YAML_BYTES), _TextLoader)
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if value not in NOTHING}
            content = _with_folded_keys(content, DataYaml.__struct_fields__, file)
        data = msgspec.convert(content, DataYaml, strict=False)  # not strict: numbers are text until here
    except (yaml.YAMLError, RecursionError) as error:
        raise DatasetError(f"not YAML: {error}", where=str(file), fix="correct the file") from error
    except msgspec.ValidationError as error:
        raise DatasetError(
            f"not a YOLO data file: {error}",
            where=str(file),
            fix="correct it; 'train', 'val' and 'names' are needed, such as names: [cat, dog]",
        ) from error
    if isinstance(data.names, dict):
        if sorted(data.names) != list(range(len(data.names))):
            raise DatasetError(
                "'names' must number the classes 0, 1, 2, ...", where=str(file), fix="add the missing ones"
            )
        data.names = [data.names[class_id] for class_id in range(len(data.names))]
    check_names(data.names, where=str(file))
    _check_number(file, "nc", data.nc, data.names)
    splits = {}
    for split, words in SPLITS.items():
        given = {word: getattr(data, word) for word in words if getattr(data, word)}
        sources: str | list[str] = next(iter(given.values()), [])
        if any(others != sources for others in given.values()):
            raise DatasetError(f"{' and '.join(given)} disagree", where=str(file), fix="keep one of them")
        splits[split] = [sources] if isinstance(sources, str) else sources
    return Description(
        file,
        data.names,
        {split: sources for split, sources in splits.items() if sources},
        data.path,
        math.prod(data.kpt_shape) if data.kpt_shape else None,
        tuple(_notes_on_keys(content, DataYaml.__struct_fields__, file)),
    )


def _with_folded_keys(content: dict[str, Any], known: Sequence[str], file: Path) -> dict[str, Any]:
    """Convert known keys to lower case: CVAT writes ``Train`` and ``Validation``."""
    folded: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).lower() if str(key).lower() in known else key
        if name in folded:
            raise DatasetError(f"'{name}' appears twice", where=str(file), fix=f"remove '{key}' or the other")
        folded[name] = value
    return folded


def _notes_on_keys(content: Mapping[str, Any], known: Sequence[str], file: Path) -> Iterator[str]:
    """Notes on keys that look like splits, but are not recognized."""
    words = {*TRAIN_WORDS, *EVAL_WORDS, *TEST_WORDS, "trainval"}
    for key in content:
        if key not in known and words.intersection(words_of(str(key))):
            yield f"'{cut(str(key))}' in {file.name} is ignored: splits must be called train, val and test"


def _check_number(file: Path, key: str, stated: object, names: list[str]) -> None:
    if stated is not None and str(stated) != str(len(names)):
        raise DatasetError(
            f"'{key}' is {cut(str(stated))}, but there are {counted(len(names), 'class name')}",
            where=str(file),
            fix=f"correct '{key}' or the names",
        )


class _TextLoader(_BaseLoader):  # type: ignore[misc]
    """Loads every scalar as text; rejects duplicate keys, since the first would be lost.

    ``<<`` merges the keys of another mapping, as YAML specifies.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if isinstance(node, yaml.MappingNode) and len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key appears twice", node.start_mark)
        merged = mapping.pop("<<", {})
        for other in merged if isinstance(merged, list) else [merged]:
            if not isinstance(other, dict):
                raise yaml.constructor.ConstructorError(None, None, "<< merges no keys", node.start_mark)
            mapping = other | mapping
        return mapping


def _read_darknet(file: Path) -> Description:
    """``obj.data``: lines ``key = value``, with paths relative to darknet's working directory."""
    entries = [line.partition("=") for _, line in read_lines(file)]
    content = {key.strip(): value.strip() for key, _, value in entries}
    settings = _with_folded_keys(content, _DARKNET_KEYS, file)
    name_file = existing(file.parent, settings.get("names") or "obj.names")
    if name_file is None and settings.get("names"):
        raise DatasetError(
            f"the file of class names '{settings['names']}' does not exist",
            where=str(file),
            fix="correct 'names = ...'",
        )
    names = read_all_names(name_file) if name_file else None
    if names:
        _check_number(file, "classes", settings.get("classes"), names)
    given = {key: [settings[word] for word in words if settings.get(word)] for key, words in SPLITS.items()}
    given["train"] = given["train"] or ["train.txt"]
    splits = {split: sources[:1] for split, sources in given.items() if sources}
    return Description(file, names, splits, notes=tuple(_notes_on_keys(settings, _DARKNET_KEYS, file)))


def existing(base: Path, name: str, *, words: Sequence[str] = ()) -> Path | None:
    """``base/name``; if missing, `name` without leading folders, which may be from another machine.

    At least two parts of a folder's name must be left (``images/train``), or a word for its split: a folder
    that is just called ``images`` may contain another split.
    """
    if len(name) > MAX_NAME_BYTES:  # each of its thousands of folders would be tried
        return None
    parts = Path(slashed(name)).parts or (".",)
    num_named = len(_named(parts))
    for start in range(len(parts)):
        path, left = base.joinpath(*parts[start:]), _named(parts[start:])
        is_certain = len(left) >= min(2, num_named) or bool({*words} & {*words_of("".join(left[:1]))})
        if os.path.isfile(path) or (is_certain and os.path.isdir(path)):
            return path
    return None


def _named(parts: Sequence[str]) -> list[str]:
    return [part for part in parts if part not in ("..", ".", os.sep)]


def _has_names(file: Path) -> bool:
    try:
        return bool(_NAMES_KEY.search(read_text(file, max_bytes=MAX_YAML_BYTES)))
    except DatasetError:  # too large for names, or of another program
        return False


def _only(folder: Path, files: list[Path], what: str) -> Path | None:
    """The only file; of several with the same content, the first."""
    if len(files) > 1 and len({read_text(file) for file in files}) > 1:
        raise several(folder, what, files, "keep only the right one, or give it instead of the folder")
    return files[0] if files else None
