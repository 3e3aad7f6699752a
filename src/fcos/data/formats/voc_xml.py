"""Read one XML file of Pascal VOC, or explain why it is not one.

A file of another kind would have no ``object`` elements where VOC has them, and count as an image without
objects; so any other element that may contain boxes is rejected. Entities are rejected too: VOC has none, and
a few lines of them can expand to gigabytes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from fcos.data.numbers import cut, flag, named, number, side, upright_around
from fcos.files import read_bytes

MAX_BYTES = 2**28
OF_BOXES = frozenset("object bndbox robndbox polygon xmin box points".split())

Element = ElementTree.Element


@dataclass
class Xml:
    """The content of one annotation file."""

    filename: str
    size_hw: tuple[int, int] | None
    class_names: list[str]
    boxes_xyxy: list[list[float]]
    is_difficult: list[bool]
    num_rotated: int = 0


def read_xml(file: Path) -> Xml:
    """Read an annotation file.

    Raises:
        ValueError: it is not a VOC annotation, or is ambiguous.
    """
    annotation = _annotation(_parse(read_bytes(file, max_bytes=MAX_BYTES)))
    height, width = (side(_text(annotation, f"size/{name}")) for name in ("height", "width"))
    size_hw = (height, width) if height and width else None  # some tools write 0
    xml = Xml(_text(annotation, "filename"), size_hw, [], [], [])
    for element in annotation:
        if element.tag != "object" and any(str(inner.tag).lower() in OF_BOXES for inner in element.iter()):
            raise ValueError(f"<{cut(str(element.tag))}> contains boxes, but in VOC only <object> does")
    for place, element in enumerate(annotation.findall("object"), start=1):
        if element.find(".//object") is not None:
            raise ValueError(f"object {place} contains another object")
        name = _text(element, "name")
        if not name:
            raise ValueError(f"object {place} has no name")
        if len(element.findall("name")) > 1:
            raise ValueError(f"object {place} ('{cut(name)}') has several names")
        try:
            xml.class_names.append(name)
            degrees = _rotation(element)
            xml.boxes_xyxy.append(upright_around(_box(element), degrees) if degrees else _box(element))
            xml.num_rotated += degrees != 0
            difficult = _text(element, "difficult").lower().replace("unspecified", "")
            xml.is_difficult.append(named("<difficult>", flag, difficult or None))
        except ValueError as error:
            raise ValueError(f"object {place} ('{cut(name)}') {error}") from None
    return xml


def _parse(content: bytes) -> Element:
    if b"<!ENTITY" in content:
        raise ValueError("xml with entities, which VOC does not use")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"not well-formed xml: {error}") from None
    except ValueError as error:  # "multi-byte encodings are not supported"
        raise ValueError(f"{error}: save it as UTF-8") from None
    for element in root.iter():
        if isinstance(element.tag, str):  # else a comment
            element.tag = element.tag.rpartition("}")[2]  # without namespace
    return root


def _annotation(root: Element) -> Element:
    """The element that describes the image: the root, or the only one in it."""
    inside = root.findall("annotation")
    if root.tag == "annotation":
        if inside:
            raise ValueError("<annotation> within <annotation>")
        return root
    if root.tag == "annotations" and len(inside) == 1:
        return inside[0]
    if root.tag == "annotations" and root.find("image") is not None:
        raise ValueError("this is CVAT's own xml; export Pascal VOC, YOLO or COCO from CVAT instead")
    many = f" with {len(inside)} images" if len(inside) > 1 else ""
    raise ValueError(f"not Pascal VOC: the root element is <{cut(str(root.tag))}>{many}, not <annotation>")


def _box(element: Element) -> list[float]:
    boxes = element.findall("bndbox")
    if len(boxes) != 1:
        raise ValueError(f"has {len(boxes)} <bndbox> elements, not one")
    corners = ("xmin", "ymin", "xmax", "ymax")
    return [named(f"<{corner}>", number, _text(boxes[0], corner)) for corner in corners]


def _rotation(element: Element) -> float:
    """Degrees about the center of the box, as CVAT writes them."""
    for attribute in element.iterfind("attributes/attribute"):
        if _text(attribute, "name") == "rotation":
            return named("rotation", number, _text(attribute, "value"))
    return 0.0


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
