"""Positions of tiles; reading a large image strip by strip, without having all of it in memory.

Pillow decodes a whole file, at four bytes per pixel. GDAL (rasterio, the extra `large`) can read single rows
of a PNG or TIFF.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import ImageFile
from torch import Tensor

from fcos.data.image import Header, no_warnings, opened, read_header, read_image
from fcos.errors import needs_extra

LARGE = 50_000_000  # pixels: smaller images are read as a whole
ROWS_AT_ONCE = 128
OVERLAP = 0.2  # of neighboring tiles, fraction of their side: the default
DRIVERS = {"PNG": "PNG", "TIFF": "GTiff"}  # GDAL's names for Pillow's formats
PNG_MODES = ("L", "LA", "P", "RGB", "RGBA")  # of 8 bits
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
COLORS = (1, 2, 3, 6)  # gray whose 0 is black, RGB, palette, YCbCr
GDAL = {"GDAL_CACHEMAX": 64, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}  # MB; ignore files next to it


def starts(side: int, tile: int, overlap: float = OVERLAP) -> list[int]:
    """Where the tiles along a side begin: as few as possible with this overlap, evenly spaced."""
    if side <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    last = -(-(side - tile) // step)
    return [(side - tile) * number // last for number in range(last + 1)]


@dataclass(frozen=True)
class LargeImage:
    """An image file that is decoded from top to bottom, a few rows at a time."""

    path: Path
    size_hw: tuple[int, int]
    driver: str  # of GDAL

    def strips(self, tops: Sequence[int], num_rows: int) -> Iterator[UInt8[Tensor, "3 rows width"]]:
        """Rows `[top, top + num_rows)`, RGB, for each top; tops ascend, without gaps between strips."""
        with needs_extra("reading a large image strip by strip", "large"):
            import rasterio
        pieces = self._pieces(rasterio)
        with opened(self.path, any_size=True):  # turns any error into a DatasetError about the image
            held, first = torch.zeros(0, self.size_hw[1], 3, dtype=torch.uint8), 0
            for top in tops:
                held, first = held[top - first :], top
                while len(held) < num_rows:
                    held = torch.cat([held, next(pieces)])
                yield held[:num_rows].permute(2, 0, 1)

    def _pieces(self, rasterio: Any) -> Iterator[UInt8[Tensor, "rows width 3"]]:
        """The image in pieces of a few rows, from top to bottom."""
        height, width = self.size_hw
        with rasterio.Env(**GDAL), no_warnings():  # rasterio warns if an image is not georeferenced
            file = rasterio.open(self.path, driver=self.driver)
        with file:
            bands, palette = [1, 2, 3] if file.count >= 3 else [1], None
            if file.colorinterp[0].name == "palette":
                colors = file.colormap(1)
                palette = np.array([colors.get(index, (0, 0, 0))[:3] for index in range(256)], np.uint8)
            for top in range(0, height, ROWS_AT_ONCE):
                with rasterio.Env(**GDAL):  # is per thread, so it must not span a yield
                    window = (top, min(top + ROWS_AT_ONCE, height)), (0, width)
                    pixels = np.moveaxis(file.read(bands, window=window), 0, 2)
                pixels = pixels if palette is None else palette[pixels[..., 0]]
                yield torch.from_numpy(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())


def open_image(path: Path) -> Tensor | LargeImage:
    """The pixels of an image, as from `read_image`; for a large image, a `LargeImage`."""
    return open_large(path) or read_image(path)


def open_large(path: Path) -> LargeImage | None:
    """A reader for a large 8-bit PNG (not interlaced) or TIFF; None for other images."""
    with opened(path, any_size=True) as (image, header):
        height, width = header.raw_size_hw
        if height * width < LARGE or header.orientation != 1 or image.format not in DRIVERS:
            return None
        assert isinstance(image, ImageFile.ImageFile)
        if image.format == "PNG":
            in_strips = image.tile[0][3] in PNG_MODES and not image.info.get("interlace")
        else:
            tags = image.tag_v2  # type: ignore[attr-defined]
            in_strips = {*tags.get(BITS, (1,))} == {8} and {*tags.get(SAMPLE_FORMAT, (1,))} == {1}
            in_strips = in_strips and tags.get(PHOTOMETRIC) in COLORS
        return LargeImage(path, (height, width), DRIVERS[image.format]) if in_strips else None


def read_large_header(path: Path, *, decode: bool = False) -> Header:
    """`read_header`, for images that are read with `open_image`."""
    large = open_large(path)
    if large is None:
        return read_header(path, decode=decode)
    height = large.size_hw[0]
    if decode:
        num_rows = min(height, ROWS_AT_ONCE)
        for _ in large.strips([*range(0, height - num_rows, num_rows), height - num_rows], num_rows):
            pass  # a damaged image raises an error
    return Header(large.size_hw, orientation=1)


class Overview:
    """A whole large image at reduced size: each pixel is the mean of a square.

    Incomplete squares at the right and bottom are dropped.
    """

    def __init__(self, width: int, reduction: int) -> None:
        self.reduction, self._num_rows = reduction, 0
        self._rest = torch.zeros(3, 0, width, dtype=torch.uint8)
        self._reduced: list[Tensor] = []

    def add(self, strip: UInt8[Tensor, "3 rows width"], top: int) -> None:
        """Add the next strip, which begins at row `top` and may overlap the previous one."""
        rows = torch.cat([self._rest, strip[:, self._num_rows - top :]], dim=1)
        self._num_rows = top + strip.shape[1]
        complete = rows.shape[1] // self.reduction * self.reduction
        self._rest = rows[:, complete:]
        if complete:
            # a few rows at a time, since floats need four times the memory
            for some in torch.split(rows[:, :complete], 16 * self.reduction, dim=1):
                means = F.avg_pool2d(some.float(), self.reduction)
                self._reduced.append(means.round().to(torch.uint8))

    def pixels(self) -> UInt8[Tensor, "3 height width"]:
        """The reduced image."""
        return torch.cat(self._reduced, dim=1)
