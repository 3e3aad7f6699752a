"""Pascal VOC: ``Annotations`` has one xml file per image, ``JPEGImages`` images, ``ImageSets/Main`` splits.

Coordinates are used unchanged, as xyxy in pixels. The original VOC counts pixels from 1 and includes the last
one, but most files "in VOC format" come from tools (labelImg, CVAT) that write plain pixel coordinates, and
nothing in a file says which it is. torchvision uses them unchanged too; the difference is one pixel.

`voc_xml` reads one file, and rejects anything ambiguous in it.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fcos.data.annotations import Annotations, Record
from fcos.data.formats.voc_xml import Xml, read_xml
from fcos.data.image_files import (
    ImageFolder,
    folders_like,
    folders_near,
    is_image,
    names_in,
    place_images,
    slashed,
    some_of,
    unique_stems,
)
from fcos.data.names import check_number_of_classes, with_names, write_names
from fcos.data.numbers import rotated_note
from fcos.data.registry import DataFormat
from fcos.data.splits import (
    SPLIT_FOLDERS,
    SPLIT_NAMES,
    Split,
    Splits,
    arranged,
    pick,
    split_folders,
    with_note,
)
from fcos.data.text import Faults, number_text, read_lines
from fcos.errors import DatasetError
from fcos.files import files_below, read_text, write_text, written
from fcos.terminal import counted


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a VOC data set folder, a file of ``ImageSets/Main``, or a folder of xml.

    `root` is the folder of the images, or of the data set. Without `names`, the classes are the sorted names
    in *all* xml files of the folder, so that its splits agree even if one has no box of a rare class.
    """
    folder = annotation_folder(source, root)
    if folder is None:
        raise DatasetError(
            "no folder of VOC xml files found", where=str(source), fix="put them in Annotations, or set root"
        )
    files = _xml_files(folder)
    stems = sorted(files) if os.path.isdir(source) else _split_stems(source, files)
    parsed = _parse_all(folder, files, stems if names is not None else sorted({*files, *stems}))
    others = _other_parts(folder)
    found = _class_names(parsed)
    check_number_of_classes(len(found), str(source))
    if names is None:
        found = sorted({*found, *_class_names(_parse_all(folder, others, others))})
    label_of = {name: label for label, name in enumerate(found)}
    images = _image_folder(folder, root, stems)
    faults = Faults()
    records = [
        Record.make(
            _image(images, stem, parsed[stem], faults),
            parsed[stem].boxes_xyxy,
            [label_of[name] for name in parsed[stem].class_names],
            image_id,
            is_difficult=parsed[stem].is_difficult,
            size_hw=parsed[stem].size_hw,
            where=str(files.get(stem, folder / f"{stem}.xml")),
        )
        for image_id, stem in enumerate(stems, start=1)
    ]
    faults.raise_any(
        "annotation file", "with several images", "correct <filename>, or remove the other image"
    )
    notes = list(_unused_images(records, {*files, *others})) if os.path.isdir(source) else []
    notes += rotated_note(sum(parsed[stem].num_rotated for stem in stems))
    annotations = Annotations.from_records(records, found, source=source, format="voc", notes=notes)
    if names is None:
        return annotations
    return replace(with_names(annotations, names), category_ids=tuple(range(1, len(names) + 1)))


def _xml_files(folder: Path) -> dict[str, Path]:
    """The xml files below a folder by name without suffix; folders called *.xml too, which fail later."""
    files: dict[str, Path] = {}
    faults = Faults()
    for path in files_below(folder, ".xml", folders_too=True):
        other = files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            faults.add(str(path), f"'{other.name}' exists too")
    faults.raise_any("annotation file", "for an image that already has one", "remove the other file")
    return files


def _other_parts(folder: Path) -> dict[str, Path]:
    """The xml files in the folders next to ``train``; empty if `folder` is not called like a split."""
    if folder.name.lower() not in SPLIT_FOLDERS:
        return {}
    parts = (part for part in split_folders(folder.parent).values() if part != folder)
    return {str(file.with_suffix("")): file for part in parts for file in _xml_files(part).values()}


def _class_names(parsed: Mapping[str, Xml]) -> list[str]:
    return sorted({name for xml in parsed.values() for name in xml.class_names})


def _unused_images(records: Sequence[Record], stems: Iterable[str]) -> Iterator[str]:
    """The note on images without an xml file in the same folders."""
    used = {Path(os.path.abspath(record.path)) for record in records}
    with_xml = {Path(stem).name for stem in stems}
    beside = [
        place / name
        for place in sorted({path.parent for path in used})
        for name in names_in(place)
        if is_image(name)
    ]
    unused = [path for path in beside if path not in used and path.stem not in with_xml]
    if unused:
        number = counted(len(unused), "image without an xml file is", "images without an xml file are")
        labeled = sum(path.with_suffix(".txt").is_file() for path in unused)
        of_yolo = f" ({labeled} of them have a .txt file, as in YOLO format: convert these first)"
        yield f"{number} not used, for example '{unused[0].name}'{of_yolo if labeled else ''}"


def write(
    annotations: Annotations, out: Path, *, root: Path | None = None, copy_images: bool = False
) -> None:
    """Write a VOC data set into the folder `out`; images are linked, or copied.

    Names are relative to `root` (default: the deepest folder with all images). Crowd regions become
    `difficult`. ``names.txt`` stores the order of the classes, which xml files cannot; ``labelmap.txt`` is
    for CVAT, which otherwise knows only the VOC classes.
    """
    names = unique_stems(annotations, root)
    stems = [name.with_suffix("").as_posix() for name in names]
    faults = Faults()
    for record, stem in zip(annotations, stems, strict=True):
        if _without_flag(stem) != stem:
            faults.add(record.where, f"'{stem}' would be read as a name and a flag")
    faults.raise_any("image", "cannot be listed in ImageSets", "rename the images")
    with written(out) as folder:
        place_images(annotations, names, folder / "JPEGImages", copy=copy_images)
        for record, name in zip(annotations, names, strict=True):
            xml = folder / "Annotations" / name.with_suffix(".xml")
            xml.parent.mkdir(parents=True, exist_ok=True)
            tree = _tree(record, name.as_posix(), annotations.class_names)
            ElementTree.indent(tree, "\t")
            tree.write(xml, encoding="utf-8")
        sets = folder / "ImageSets" / "Main"
        sets.mkdir(parents=True, exist_ok=True)
        (sets / "trainval.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
        write_names(annotations.class_names, folder / "names.txt")
        lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        lines += [f"{name}:::" for name in annotations.class_names]
        write_text(folder / "labelmap.txt", "\n".join(lines) + "\n")


def annotation_folder(source: Path, root: Path | None = None) -> Path | None:
    """The folder of a source's xml files, or None."""
    if os.path.isdir(source):
        bases = [source]
    else:
        bases = [*([root, root.parent] if root is not None else []), *list(source.absolute().parents)[:3]]
    named = [folder for base in bases for folder in folders_like(base, "Annotations")]
    for folder in (*named, *bases):
        if any(name.lower().endswith(".xml") for name in names_in(folder)):
            return folder
    # or a folder called ``Annotations`` whose xml files are in subfolders
    return next((folder for folder in named if any(files_below(folder, ".xml"))), None)


def _split_stems(source: Path, files: Mapping[str, Path]) -> list[str]:
    """Names in an ImageSets file; in ``cat_train.txt`` and the like, each is followed by -1, 0 or 1."""
    stems = [slashed(line) for _, line in read_lines(source)]
    without = list(map(_without_flag, stems))
    if not files.keys() >= {*stems} and all(map(str.__ne__, stems, without)):  # "photo 1" may be a name too
        stems = without
    # some tools write image names, PaddleDetection image and xml names
    stems = [Path(s.split()[-1]).stem if s.lower().endswith(".xml") else s for s in stems]
    return [os.path.splitext(s)[0] if is_image(s) and s not in files else s for s in stems]


def _without_flag(line: str) -> str:
    stem, _, flag = line.rpartition(" ")
    return stem.strip() if stem and flag in ("-1", "0", "1") else line


def _parse_all(folder: Path, files: Mapping[str, Path], stems: Iterable[str]) -> dict[str, Xml]:
    parsed: dict[str, Xml] = {}
    faults = Faults()
    for stem in stems:
        file = files.get(stem, folder / f"{stem}.xml")
        with faults.at(str(file)):
            if not os.path.lexists(file):
                raise ValueError("not found")
            parsed[stem] = read_xml(file)
    faults.raise_any(
        "annotation file",
        "cannot be read",
        "correct them, or remove them from the split and the folder",
    )
    return parsed


def _image_folder(folder: Path, root: Path | None, stems: Sequence[str]) -> ImageFolder:
    """The folder that contains images with these names; the first candidate if none does."""
    if root is not None:
        candidates = [root, *_usual_folders(root)]
    else:
        near = folders_near(folder)
        # ``Annotations/train`` goes with ``JPEGImages``, or with ``JPEGImages/train``.
        candidates = [*_usual_folders(folder.absolute().parent), *near, *(f / folder.name for f in near)]
    finders = [ImageFolder(candidate) for candidate in candidates]
    some = [*some_of(stems), *(Path(stem).name for stem in some_of(stems))]
    return next((finder for finder in finders if any(map(finder.find_all, some))), finders[0])


def _usual_folders(base: Path) -> list[Path]:
    names = ("JPEGImages", "images")
    return [folder for name in names for folder in (folders_like(base, name) or [base / name])]


def _image(images: ImageFolder, stem: str, xml: Xml, faults: Faults) -> Path:
    """The image of an xml file: by its <filename>, else by the name of the xml file, else a missing path."""
    by_filename = images.folder / (xml.filename or f"{stem}.jpg")
    if xml.filename and by_filename.stem == Path(stem).name and os.path.isfile(by_filename):
        return by_filename  # decides between cat.jpg and cat.png
    found = images.find_all(stem)
    if len(found) > 1:
        faults.add(f"{stem}.xml", " or ".join(f"'{path.name}'" for path in found))
    return found[0] if found else by_filename


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


def _split_files(folder: Path) -> dict[str, Path]:
    """The lists of the splits by name, in VOC's folder for them, or one or two levels up."""
    for place, is_list in (("ImageSets/Main", _has_text), ("ImageSets", _has_text), (".", _names_xml)):
        for sets in folders_like(folder, place):
            # Exact names only: the folder also has a file per class (cat_train.txt).
            named = {
                Path(name).stem.lower(): sets / name
                for name in names_in(sets)
                if name.lower().endswith(".txt")
            }
            found = {part: file for part, file in named.items() if part in SPLIT_NAMES and is_list(file)}
            if found:
                return found
    return {}


def _has_text(file: Path) -> bool:
    return bool(read_text(file).strip())


def _names_xml(file: Path) -> bool:
    """Whether a list next to the folder of xml files names any of them: it may be of another format."""
    folder = annotation_folder(file)
    files = _xml_files(folder) if folder else {}
    return any(stem in files for stem in some_of(_split_stems(file, files)))


def _splits(folder: Path) -> Splits:
    # Only `convert` writes one: it stores the order of the classes, which xml files cannot.
    name_file = folder / "names.txt" if (folder / "names.txt").is_file() else None
    lists = _split_files(folder)
    sources = pick(lists, folder)
    annotations = annotation_folder(folder)
    # ``train`` and ``val`` with their own folders, or within ``Annotations``
    subfolders = split_folders(folder if annotations is None else annotations)
    if subfolders and not any(sources):
        return arranged("voc", pick(subfolders, folder), whole=Split(folder), name_file=name_file)
    root = None if annotations == folder else folder  # for a folder of only xml files, images are nearby
    found = arranged("voc", sources, root=folder, whole=Split(folder, root), name_file=name_file)
    if annotations is None or not lists:
        return found
    files = _xml_files(annotations)
    listed = {stem for file in lists.values() for stem in _split_stems(file, files)}
    unused = [file for stem, file in files.items() if stem not in listed]
    words = "annotation file belongs", "annotation files belong"
    return with_note(found, sources, unused, annotations, *words)


FORMAT = DataFormat(
    name="voc",
    looks_like="Pascal VOC (Annotations folder, ImageSets file)",
    suffixes=(".txt", ""),
    read=read,
    folder_signs=(
        (80, lambda folder: annotation_folder(folder) is not None),
        (40, lambda folder: any(map(annotation_folder, split_folders(folder).values()))),
    ),
    text_signs=(
        (90, lambda file, root, lines: "imagesets" in map(str.lower, file.parts)),
        (40, lambda file, root, lines: annotation_folder(file, root) is not None),
    ),
    splits=_splits,
    box_word="object",
    write=write,
    names_beside=lambda out: out / "names.txt",
    keeps=frozenset({"difficult"}),
)
