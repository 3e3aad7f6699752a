"""Read a large image strip by strip, without ever holding all of it in memory.

Pillow decodes a file as a whole, with four bytes for each pixel. But the rows of a PNG are compressed one
after the other, and the strips or tiles of a TIFF independently of each other: a few at a time are put into a
small file of the same kind, in memory, which Pillow decodes like any other.
"""

from __future__ import annotations

import io
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import ImageFile
from torch import Tensor

from fcos.data.image import Header, opened, read_header, read_image, to_pixels

LARGE = 50_000_000  # pixels: smaller images are read as a whole
ROWS_AT_ONCE = 128
PIECE_BYTES = 2**20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_MODES = ("L", "LA", "P", "RGB", "RGBA")  # of 8 bits, whose bytes in Pillow are those of the file
# Tags of TIFF
WIDTH, HEIGHT, BITS, COMPRESSION, PLANES = 256, 257, 258, 259, 284
TILE_WIDTH, TILE_HEIGHT, ROWS_PER_STRIP = 322, 323, 278
OFFSETS, NUM_BYTES = {"strips": 273, "tiles": 324}, {"strips": 279, "tiles": 325}
# How the pixels of a strip or tile are stored, with: colors, samples per pixel, predictor, palette, extra
# samples, sample format, tables of JPEG, and two tags of YCbCr.
NAMELESS_TAGS = (262, 277, 317, 320, 338, 339, 347, 530, 532)
COPIED_TAGS = (WIDTH, BITS, COMPRESSION, PLANES, TILE_WIDTH, TILE_HEIGHT, *NAMELESS_TAGS)


@dataclass(frozen=True)
class LargeImage(ABC):
    """An image file that is decoded from top to bottom, some rows at a time.

    Attributes:
        path: of the file.
        size_hw: height, width.
    """

    path: Path
    size_hw: tuple[int, int]

    def strips(self, tops: Sequence[int], num_rows: int) -> Iterator[UInt8[Tensor, "3 rows width"]]:
        """Rows `[top, top + num_rows)`, RGB, for each top; ascending, without rows left out in between.

        Raises:
            DatasetError: the file is damaged.
        """
        with opened(self.path, any_size=True), self.path.open("rb") as file:
            pieces = (piece.permute(1, 2, 0) for piece in self._pieces(file))
            held, first = torch.zeros(0, self.size_hw[1], 3, dtype=torch.uint8), 0
            for top in tops:
                held, first = held[top - first :], top
                while len(held) < num_rows:
                    piece = next(pieces, None)
                    if piece is None:
                        raise OSError("image file is truncated")  # `opened` makes a DatasetError of it
                    held = torch.cat([held, piece])
                yield held[:num_rows].permute(2, 0, 1)

    @abstractmethod
    def _pieces(self, file: BinaryIO) -> Iterator[Tensor]:
        """The image in pieces of a few rows, from top to bottom."""


def open_image(path: Path) -> Tensor | LargeImage:
    """The pixels of an image, as `read_image` has them; what reads it in strips, where it is large.

    Raises:
        DatasetError: it cannot be read.
    """
    return open_large(path) or read_image(path)


def open_large(path: Path) -> LargeImage | None:
    """What reads a large image in strips: PNG, not interlaced, or TIFF of strips or tiles, both of 8 bits."""
    with opened(path, any_size=True) as (image, header):
        size_hw = header.raw_size_hw
        if size_hw[0] * size_hw[1] < LARGE or header.orientation != 1:
            return None
        assert isinstance(image, ImageFile.ImageFile)
        if image.format == "PNG" and image.tile[0][3] in PNG_MODES and not image.info.get("interlace"):
            return _LargePng(path, size_hw, len(image.getbands()))
        tags = dict(getattr(image, "tag_v2", {}))
        if image.format == "TIFF" and tags.get(PLANES, 1) == 1 and set(tags.get(BITS, (1,))) == {8}:
            return _large_tiff(path, size_hw, tags)
    return None


def read_large_header(path: Path, *, decode: bool = False) -> Header:
    """As `read_header`, for images that are read with `open_image`."""
    large = open_large(path)
    if large is None:
        return read_header(path, decode=decode)
    height = large.size_hw[0]
    if decode:
        num_rows = min(height, ROWS_AT_ONCE)
        for _ in large.strips([*range(0, height - num_rows, num_rows), height - num_rows], num_rows):
            pass  # a damaged one raises an error
    return Header(large.size_hw, orientation=1)


class Overview:
    """A large image as a whole, reduced: each pixel is the mean of a square.

    What is left over at the right and at the bottom is left out.
    """

    def __init__(self, width: int, reduction: int) -> None:
        self.reduction, self._num_rows = reduction, 0
        self._rest = torch.zeros(3, 0, width, dtype=torch.uint8)
        self._reduced: list[Tensor] = []

    def add(self, strip: UInt8[Tensor, "3 rows width"], top: int) -> None:
        """The next strip, which begins at row `top`; it may begin with rows of the one before."""
        rows = torch.cat([self._rest, strip[:, self._num_rows - top :]], dim=1)
        self._num_rows = top + strip.shape[1]
        complete = rows.shape[1] // self.reduction * self.reduction
        self._rest = rows[:, complete:]
        if complete:
            # a few rows at a time, since floats are four times as large
            for some in torch.split(rows[:, :complete], 16 * self.reduction, dim=1):
                means = F.avg_pool2d(some.float(), self.reduction)
                self._reduced.append(means.round().to(torch.uint8))

    def pixels(self) -> UInt8[Tensor, "3 height width"]:
        """The reduced image."""
        return torch.cat(self._reduced, dim=1)


# PNG --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LargePng(LargeImage):
    """Each row is stored as its difference to its neighbours, of which one is the row above it.

    Attributes:
        num_channels: bytes of a pixel.
    """

    num_channels: int

    def _pieces(self, file: BinaryIO) -> Iterator[Tensor]:
        width = self.size_hw[1]
        row_bytes = 1 + self.num_channels * width
        others: dict[bytes, bytes] = {}
        above = bytes(row_bytes)  # as the first row has it: zeros; the byte before a row is 0 for "as it is"
        for rows in _inflated(_compressed(file, others), ROWS_AT_ONCE * row_bytes):
            num_rows = len(rows) // row_bytes
            size = struct.pack(">II", width, num_rows + 1)
            small = _small_png(others, size, above + rows[: num_rows * row_bytes])
            with opened(io.BytesIO(small), str(self.path), any_size=True) as (image, _):
                image.load()
                above = b"\0" + image.crop((0, num_rows, width, num_rows + 1)).tobytes()
                yield to_pixels(image)[:, 1:]


def _compressed(file: BinaryIO, others: dict[bytes, bytes]) -> Iterator[bytes]:
    """The compressed pixels of a PNG; its header and palette are put into `others`."""
    file.seek(len(PNG_SIGNATURE))
    while head := file.read(8):
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IHDR", b"PLTE", b"tRNS"):
            others[kind], length = file.read(length), 0
        elif kind == b"IDAT":
            for first in range(0, length, PIECE_BYTES):
                yield file.read(min(PIECE_BYTES, length - first))
            length = 0
        file.seek(length + 4, io.SEEK_CUR)  # the checksum too: the compressed pixels have one of their own


def _inflated(pieces: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    """Decompressed data, some bytes at a time: a small piece may stand for gigabytes of one color."""
    inflate, held = zlib.decompressobj(), b""
    for piece in pieces:
        held += inflate.decompress(piece, num_bytes - len(held))
        while len(held) == num_bytes:
            yield held
            held = inflate.decompress(inflate.unconsumed_tail, num_bytes)
        if inflate.eof:  # what follows would be kept in memory
            break
    if held:
        yield held


def _small_png(others: dict[bytes, bytes], size: bytes, rows: bytes) -> bytes:
    """A PNG of these rows, each with the byte before it that says how it is stored; not compressed again."""
    chunks = {**others, b"IHDR": size + others[b"IHDR"][8:], b"IDAT": zlib.compress(rows, 0), b"IEND": b""}
    parts = [PNG_SIGNATURE]
    for kind, data in chunks.items():
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


# TIFF -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LargeTiff(LargeImage):
    """Strips, or rows of tiles, of which each is compressed by itself.

    Attributes:
        kind: "strips" or "tiles".
        rows: of each.
        tags: what the file says about itself.
    """

    kind: str
    rows: int
    tags: dict[int, Any]

    def _pieces(self, file: BinaryIO) -> Iterator[Tensor]:
        height, width = self.size_hw
        across = -(-width // self.tags[TILE_WIDTH]) if self.kind == "tiles" else 1
        offsets = np.atleast_1d(self.tags[OFFSETS[self.kind]]).tolist()
        num_bytes = np.atleast_1d(self.tags[NUM_BYTES[self.kind]]).tolist()
        together = max(1, ROWS_AT_ONCE // self.rows)
        for top in range(0, height, together * self.rows):
            parts = []
            first = top // self.rows * across
            for place in range(first, min(first + together * across, len(offsets))):
                file.seek(offsets[place])
                parts.append(file.read(num_bytes[place]))
            small = self._small(min(together * self.rows, height - top), parts)
            with opened(io.BytesIO(small), str(self.path), any_size=True) as (image, _):
                yield to_pixels(image)

    def _small(self, num_rows: int, parts: list[bytes]) -> bytes:
        """A TIFF of these strips or tiles alone."""
        tags = {tag: self.tags[tag] for tag in COPIED_TAGS if tag in self.tags}
        tags |= {HEIGHT: num_rows, ROWS_PER_STRIP: self.rows}
        sizes = [len(part) for part in parts]
        tags |= {NUM_BYTES[self.kind]: sizes, OFFSETS[self.kind]: [0 for _ in parts]}
        begin = len(_directory(tags))
        tags[OFFSETS[self.kind]] = [begin + sum(sizes[:place]) for place in range(len(parts))]
        return _directory(tags) + b"".join(parts)


def _large_tiff(path: Path, size_hw: tuple[int, int], tags: dict[int, Any]) -> _LargeTiff | None:
    """A TIFF in its strips or tiles; None where all of it is compressed as one."""
    height, width = size_hw
    kind = "tiles" if TILE_WIDTH in tags else "strips"
    rows = tags[TILE_HEIGHT] if kind == "tiles" else min(height, tags.get(ROWS_PER_STRIP, height))
    if kind == "strips" and rows == height and tags.get(COMPRESSION, 1) == 1:  # each row might be a strip
        [begin], row_bytes, rows = tags[OFFSETS[kind]], width * len(tags[BITS]), 1
        tags = {**tags, OFFSETS[kind]: range(begin, begin + height * row_bytes, row_bytes)}
        tags[NUM_BYTES[kind]] = [row_bytes] * height
    return _LargeTiff(path, size_hw, kind, rows, tags) if rows <= height // 2 else None


def _directory(tags: dict[int, Any]) -> bytes:
    """The beginning of a little-endian TIFF: its tags, whole numbers or (the tables of JPEG) bytes."""
    entries, values = b"", b""
    begin_of_values = 8 + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, bytes) else np.atleast_1d(value).astype("<u4").tobytes()
        kind, count = (7, len(value)) if isinstance(value, bytes) else (4, len(numbers) // 4)
        if len(numbers) > 4:
            values, numbers = values + numbers, struct.pack("<I", begin_of_values + len(values))
        entries += struct.pack("<HHI", tag, kind, count) + numbers.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values
