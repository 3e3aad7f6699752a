"""Pascal VOC: ``Annotations`` holds an xml a picture, ``JPEGImages`` pictures, ``ImageSets/Main`` splits.

Coordinates are taken as they stand, as xyxy in pixels. The original VOC counts pixels from 1 and includes the
last one, but most files "in VOC format" come from tools (labelImg, CVAT) that write plain pixel coordinates,
and nothing in a file tells which it is. torchvision takes them as they stand too; the difference is one
pixel.

Python's own xml parser is enough: it resolves no external entities, and the expat in use limits expansion.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcos.data.annotations import Annotations, Record
from fcos.data.names import match_names, write_names
from fcos.data.pictures import PictureFolder, check_root, folders_near, place_pictures, unique_stems
from fcos.data.text import Faults, number_text, read_lines
from fcos.errors import DatasetError

ANNOTATION_FOLDERS = ("Annotations", "annotations")


@dataclass(frozen=True)
class Xml:
    """What one annotation file says."""

    filename: str
    path: str
    size_hw: tuple[int, int] | None
    class_names: list[str]
    boxes_xyxy: list[list[float]]
    is_difficult: list[bool]


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a VOC data set folder, a file of ``ImageSets/Main``, or a folder of xml.

    Args:
        source: one of those three.
        root: folder of the pictures, or the data set's folder; found near the annotations if not given.
        names: class names; without them, the sorted names of *all* xml of the folder, so that the splits of
            one data set agree even if a rare class is missing in one of them.
    """
    check_root(root)
    folder = annotation_folder(source, root)
    if folder is None:
        raise DatasetError(
            "no folder of VOC xml files found", where=str(source), fix="put them in Annotations, or give root"
        )
    all_stems = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.xml"))
    stems = all_stems if source.is_dir() else _split_stems(source)
    parsed = _parse_all(folder, stems if names is not None else sorted({*all_stems, *stems}))
    found = sorted({name for xml in parsed.values() for name in xml.class_names})
    names = found if names is None else names
    label_of = dict(zip(found, match_names(found, names, where=str(source)), strict=True))
    pictures = _picture_folder(folder, root, stems)
    records = [
        Record.make(
            _picture(pictures, stem, parsed[stem]),
            parsed[stem].boxes_xyxy,
            [label_of[name] for name in parsed[stem].class_names],
            image_id,
            is_difficult=parsed[stem].is_difficult,
            size_hw=parsed[stem].size_hw,
            where=str(folder / f"{stem}.xml"),
        )
        for image_id, stem in enumerate(stems, start=1)
    ]
    return Annotations.from_records(records, names, source=source, format="voc")


def write(
    annotations: Annotations,
    out: Path,
    *,
    root: Path | None = None,
    split: str = "trainval",
    copy_images: bool = False,
) -> None:
    """Write a VOC data set into the folder `out`; pictures are linked, or copied.

    Names are relative to `root` (without it, to the deepest folder with all pictures). Crowd regions become
    `difficult`. ``names.txt`` keeps the order of the classes, which xml files cannot.
    """
    names = unique_stems(annotations, root)
    place_pictures(
        ((record.path, out / "JPEGImages" / name) for record, name in zip(annotations, names, strict=True)),
        copy=copy_images,
    )
    for record, name in zip(annotations, names, strict=True):
        xml = out / "Annotations" / name.with_suffix(".xml")
        xml.parent.mkdir(parents=True, exist_ok=True)
        tree = _tree(record, name.as_posix(), annotations.class_names)
        ElementTree.indent(tree, "\t")
        tree.write(xml, encoding="utf-8")
    sets = out / "ImageSets" / "Main"
    sets.mkdir(parents=True, exist_ok=True)
    stems = [name.with_suffix("").as_posix() for name in names]
    (sets / f"{split}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    write_names(annotations.class_names, out / "names.txt")


def annotation_folder(source: Path, root: Path | None = None) -> Path | None:
    """The folder of xml files that belongs to a source, or None."""
    if source.is_dir():
        bases = [source]
    else:
        bases = [*([root, root.parent] if root is not None else []), *list(source.absolute().parents)[:3]]
    candidates = [base / name for base in bases for name in ANNOTATION_FOLDERS] + bases
    return next((folder for folder in candidates if any(folder.glob("*.xml"))), _nested(candidates))


def _nested(candidates: list[Path]) -> Path | None:
    """A folder called ``Annotations`` whose xml files are in subfolders."""
    named = (folder for folder in candidates if folder.name in ANNOTATION_FOLDERS and folder.is_dir())
    return next((folder for folder in named if any(folder.rglob("*.xml"))), None)


def _split_stems(source: Path) -> list[str]:
    """Names in an ImageSets file; ``cat_train.txt`` and the like have -1, 0 or 1 behind each."""
    stems = []
    for _, line in read_lines(source):
        stem, _, flag = line.rpartition(" ")
        stems.append(stem.strip() if stem and flag in ("-1", "0", "1") else line)
    return stems


def _parse_all(folder: Path, stems: Sequence[str]) -> dict[str, Xml]:
    parsed: dict[str, Xml] = {}
    faults = Faults()
    for stem in stems:
        file = folder / f"{stem}.xml"
        try:
            parsed[stem] = _parse(file)
        except FileNotFoundError:
            faults.add(str(file), "not found")
        except ElementTree.ParseError as error:
            faults.add(str(file), f"not well-formed xml: {error}")
        except ValueError as error:
            faults.add(str(file), str(error))
    faults.raise_any(
        "annotation files cannot be read", "correct them, or take them out of the split and the folder"
    )
    return parsed


def _parse(file: Path) -> Xml:
    tree = ElementTree.parse(file).getroot()
    xml = Xml(tree.findtext("filename", ""), tree.findtext("path", ""), _size(tree), [], [], [])
    for number, element in enumerate(tree.findall("object"), start=1):
        name = element.findtext("name", "").strip()
        sides = [element.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = [float(side) for side in sides]
        except ValueError:
            raise ValueError(f"object {number} ('{name}') has no box of four numbers") from None
        if not name:
            raise ValueError(f"object {number} has no name")
        xml.class_names.append(name)
        xml.boxes_xyxy.append(box)
        xml.is_difficult.append(element.findtext("difficult", "0").strip() == "1")
    return xml


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Height, width as stated; None where missing or 0, as some tools write."""
    try:
        height, width = (int(float(tree.findtext(f"size/{side}", "0"))) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None


def _picture_folder(folder: Path, root: Path | None, stems: Sequence[str]) -> PictureFolder:
    """The folder that holds pictures of these names; the first candidate if none does."""
    if root is not None:
        candidates = [root, root / "JPEGImages", root / "images"]
    else:
        beside = folder.absolute().parent
        named = [beside / "JPEGImages", beside / "images"]
        candidates = named + folders_near(folder)
    finders = [PictureFolder(candidate) for candidate in candidates]
    return next((finder for finder in finders if any(map(finder.find, stems[:10]))), finders[0])


def _picture(pictures: PictureFolder, stem: str, xml: Xml) -> Path:
    """The picture of an xml file: by its file name, else by the name inside, else where it should be."""
    by_filename = pictures.folder / (xml.filename or f"{stem}.jpg")
    if by_filename.stem == Path(stem).name and by_filename.is_file():
        return by_filename  # decides between cat.jpg and cat.png
    found = pictures.find(stem)
    if found is None and not by_filename.is_file() and xml.path and Path(xml.path).is_file():
        return Path(xml.path)
    return found or by_filename


def _tree(
    record: Record, filename: str, class_names: Sequence[str]
) -> ElementTree.ElementTree[ElementTree.Element]:
    top = ElementTree.Element("annotation")
    ElementTree.SubElement(top, "filename").text = filename
    if record.size_hw is not None:
        size = ElementTree.SubElement(top, "size")
        for side, value in zip(("height", "width"), record.size_hw, strict=True):
            ElementTree.SubElement(size, side).text = str(value)
    is_ignored = np.logical_or(record.is_difficult, record.is_crowd)
    for box, label, ignored in zip(
        record.boxes_xyxy.tolist(), record.labels.tolist(), is_ignored, strict=True
    ):
        element = ElementTree.SubElement(top, "object")
        ElementTree.SubElement(element, "name").text = class_names[label]
        ElementTree.SubElement(element, "difficult").text = str(int(ignored))
        corners = ElementTree.SubElement(element, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, side).text = number_text(value)
    return ElementTree.ElementTree(top)
