"""COCO's JSON as columns, read piece by piece: a million boxes without a million Python objects at once.

`read_columns` decodes pieces of the two long lists straight into typed records, turns each piece into arrays
and forgets it; segmentations and unknown keys are never built. It is for files as COCO defines them, and
gives None for any other: the ordinary reader then says what is wrong, or makes the best of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 2**18  # stays in a processor's cache, with what is made of it, and needs no new pages
PIECES_OF_BLOCK = 64
VALUE_BYTES = 2**16
SPACES = b" \t\r\n"
LIST_END = re.compile(rb"\}[ \t\r\n]*\]")


class ImageEntry(msgspec.Struct, gc=False):
    """What is used of an image."""

    id: int
    file_name: str
    height: float | None = None
    width: float | None = None


class BoxEntry(msgspec.Struct, gc=False):
    """What is used of an annotation."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: bool | int | None = 0
    ignore: bool | int | None = 0


@dataclass
class Columns:
    """A COCO file, in its own order as it is read.

    Attributes:
        categories: as in the file.
        image_ids: `(images,)` int64.
        names: `(images,)` utf-8 of fixed width, ``file_name``.
        sizes_hw: `(images, 2)` int32, -1 where not stated.
        box_image_ids, box_category_ids: `(boxes,)` int64.
        boxes_xywh: `(boxes, 4)` float64.
        areas: `(boxes,)` float64, nan where not stated.
        is_crowd, is_difficult: `(boxes,)` bool, ``iscrowd`` and ``ignore``.
    """

    categories: list[dict[str, Any]]
    image_ids: NDArray[np.int64]
    names: NDArray[Any]
    sizes_hw: NDArray[np.int32]
    box_image_ids: NDArray[np.int64]
    box_category_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    is_difficult: NDArray[np.bool_]

    def sort_boxes(self, order: NDArray[np.int64]) -> None:
        """Bring the boxes into this order, column by column: memory holds one of them twice, not all."""
        self.box_image_ids = self.box_image_ids[order]
        self.box_category_ids = self.box_category_ids[order]
        self.boxes_xywh = self.boxes_xywh[order]
        self.areas = self.areas[order]
        self.is_crowd = self.is_crowd[order]
        self.is_difficult = self.is_difficult[order]


def read_columns(source: Path) -> Columns | None:
    """The columns of a file that is as COCO defines it; None for any other."""
    parts: dict[str, Any] = {}
    lists: dict[str, tuple[Any, Callable[[list[Any]], list[NDArray[Any]]]]]
    lists = {"images": (list[ImageEntry], _image_columns), "annotations": (list[BoxEntry], _box_columns)}
    try:
        with source.open("rb") as file:
            text = _Text(file)
            for key in text.keys():
                if key in lists:
                    kind, to_columns = lists[key]
                    decoder = msgspec.json.Decoder(kind)
                    pieces = map(to_columns, text.pieces(decoder))
                    parts[key] = _joined(list(_blocks(pieces, to_columns)), to_columns)
                else:
                    value = text.value()
                    parts[key] = value if key == "categories" else None
    except (msgspec.MsgspecError, ValueError, OSError, OverflowError, RecursionError):
        return None
    if not isinstance(parts.get("categories"), list) or not lists.keys() <= parts.keys():
        return None
    return Columns(parts["categories"], *parts["images"], *parts["annotations"])


def _image_columns(images: list[ImageEntry]) -> list[NDArray[Any]]:
    sizes = chain.from_iterable((i.height, i.width) if i.height and i.width else (-1, -1) for i in images)
    return [
        _column(images, "id", np.int64),
        np.array([image.file_name.encode() for image in images], np.bytes_),
        np.fromiter(sizes, np.float64, 2 * len(images)).astype(np.int32).reshape(-1, 2),
    ]


def _box_columns(boxes: list[BoxEntry]) -> list[NDArray[Any]]:
    sides = chain.from_iterable(map(attrgetter("bbox"), boxes))
    return [
        _column(boxes, "image_id", np.int64),
        _column(boxes, "category_id", np.int64),
        np.fromiter(sides, np.float64, 4 * len(boxes)).reshape(-1, 4),
        np.array([box.area for box in boxes], np.float64),  # None becomes nan
        _column(boxes, "iscrowd", np.bool_),
        _column(boxes, "ignore", np.bool_),
    ]


def _column(entries: list[Any], name: str, dtype: type) -> NDArray[Any]:
    return np.fromiter(map(attrgetter(name), entries), dtype, len(entries))


def _blocks(pieces: Iterator[list[NDArray[Any]]], to_columns: Any) -> Iterator[list[NDArray[Any]]]:
    """Some pieces joined at a time: small arrays that stay keep the memory between them from being let go."""
    while some := list(islice(pieces, PIECES_OF_BLOCK)):
        yield _joined(some, to_columns)


def _joined(pieces: list[list[NDArray[Any]]], to_columns: Any) -> list[NDArray[Any]]:
    """Pieces one behind the other, column by column; what is joined is let go."""
    columns = []
    for place, empty in enumerate(to_columns([])):
        columns.append(np.concatenate([piece[place] for piece in pieces] or [empty]))
        for piece in pieces:
            piece[place] = empty
    return columns


class _Text:
    """A JSON object in a file, of which only a piece is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.buffer, self.at_end = file, b"", False
        self._more(PIECE_BYTES)
        self.buffer = self.buffer.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of Windows editors

    def keys(self) -> Iterator[str]:
        """Each key; its value must be taken before the next."""
        self._expect(b"{")
        if self._next() == b"}":
            self._expect(b"}")
        else:
            while True:
                key = self.value()
                if not isinstance(key, str):
                    raise ValueError("a key is a text")
                self._expect(b":")
                yield key
                if self._next() == b"}":
                    self._expect(b"}")
                    break
                self._expect(b",")
        if self._next():
            raise ValueError("text behind the object")

    def value(self) -> Any:
        """A whole value, of any kind, that ends before the end of the object."""
        self._next()
        size = VALUE_BYTES
        while True:
            self._more(size)
            text = self.buffer[:size].decode("utf-8", "ignore")  # may end within a character
            try:
                value, end = json.JSONDecoder().raw_decode(text)
            except json.JSONDecodeError:
                end = len(text)
            if text[end:].lstrip().startswith((",", ":", "}")):  # else it could go on: 1 may be 1.5
                self.buffer = self.buffer[len(text[:end].encode()) :]
                return value
            if size >= len(self.buffer) and self.at_end:
                raise ValueError("the text ends too soon")
            size *= 2

    def pieces(self, decoder: msgspec.json.Decoder[list[Any]]) -> Iterator[list[Any]]:
        """The elements of a list of objects, some at a time.

        What stands before a cut is a valid list once "]" is put behind it only if the cut is between two
        elements (not in a text, nor in a list within an element). So a wrong cut does not decode: then an
        earlier one is tried, and at last a longer piece.
        """
        self._expect(b"[")
        if self._next() == b"]":
            self._expect(b"]")
            return
        while True:
            self._more(PIECE_BYTES)
            yield self._piece(decoder)
            if self._next() == b"]":
                self._expect(b"]")
                return
            self._expect(b",")

    def _piece(self, decoder: msgspec.json.Decoder[list[Any]]) -> list[Any]:
        while True:
            for cut in self._cuts():
                try:
                    piece = decoder.decode(b"".join((b"[", memoryview(self.buffer)[:cut], b"]")))
                except msgspec.ValidationError:  # not what COCO defines (a DecodeError too)
                    raise
                except msgspec.DecodeError:
                    continue
                self.buffer = self.buffer[cut:]
                return piece
            if self.at_end:
                raise ValueError("a list does not end")
            self._more(2 * len(self.buffer) + PIECE_BYTES)

    def _cuts(self) -> Iterator[int]:
        """Places behind a "}": the last one, then the likely end of the list, then ever earlier ones."""
        size = len(self.buffer)
        while cut := self.buffer.rfind(b"}", 0, size) + 1:
            yield cut
            if size == len(self.buffer) and (end := LIST_END.search(self.buffer)):
                yield end.start() + 1
            size = min(cut - 1, size // 2)
        if self.at_end:  # little is left by now
            yield from (end.start() + 1 for end in LIST_END.finditer(self.buffer))

    def _next(self) -> bytes:
        """The next character that is no space, left where it is; empty at the end of the file."""
        self.buffer = self.buffer.lstrip(SPACES)
        while not self.buffer and not self.at_end:
            self._more(PIECE_BYTES)
            self.buffer = self.buffer.lstrip(SPACES)
        return self.buffer[:1]

    def _expect(self, character: bytes) -> None:
        if self._next() != character:
            raise ValueError(f"expected {character!r}")
        self.buffer = self.buffer[1:]

    def _more(self, size: int) -> None:
        """Read until so many bytes are in memory, or all."""
        if len(self.buffer) < size and not self.at_end:
            read = self.file.read(size - len(self.buffer))
            self.at_end = not read
            self.buffer += read
