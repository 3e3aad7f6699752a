"""Read images of any format as upright 8-bit RGB, with their boxes.

Cameras store an image in the sensor's orientation, with an EXIF tag that says how to turn it. Pixels are
always turned upright here. Boxes are turned only if the annotations are clearly in the sensor's frame: the
annotation file states the size before turning, and turning swaps the sides. In every other case they are
upright already, since annotation tools show upright images and normalized (YOLO) boxes refer to them.

A JPEG can be decoded at a half, a quarter or an eighth of its size (`read_reduced`): it stores blocks of
8 x 8 pixels as frequencies, and the high ones are skipped. For training, which scales images down anyway.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageSequence, UnidentifiedImageError
from torch import Tensor

from fcos.data.annotations import Record
from fcos.data.arrays import Color, array_pixels
from fcos.errors import DatasetError
from fcos.files import check_regular, reason_of

NOT_FOUND = "image not found"
EXIF_ORIENTATION = 0x0112
TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
REDUCTIONS = (8, 4, 2)
STRIPS_ABOVE = 2**20  # pixels
STRIP_ROWS = 64
USUAL_BITS = (8, 10, 12, 14, 16, 24, 31, 32)
NEW_SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH = 254, 256, 257  # tags of TIFF
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO = 0
REDUCED, MASK = 1, 4  # bits of NEW_SUBFILE_TYPE
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
JPEG_FORMATS = ("JPEG", "MPO")  # MPO: several images in one JPEG file, as of phones; the first one is read
_warnings_lock = threading.Lock()


class Header(NamedTuple):
    """The header of an image file, read without decoding its pixels."""

    raw_size_hw: tuple[int, int]  # as stored
    orientation: int  # of EXIF, 1 (upright) to 8

    @property
    def swaps_sides(self) -> bool:
        """Whether turning the image upright swaps height and width."""
        return self.orientation >= 5

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height, width of the upright image."""
        height, width = self.raw_size_hw
        return (width, height) if self.swaps_sides else (height, width)


class DecodedImage(NamedTuple):
    """Pixels of a file, at its own size or reduced."""

    pixels: UInt8[Tensor, "3 _ _"]  # RGB, upright, channels last in memory
    size_hw: tuple[int, int]  # of the upright image in the file
    reduction: int  # 1, 2, 4 or 8; each pixel covers this many by this many of the file
    # Where the image begins in `pixels`, times `reduction`: not at 0 if turning moved a partly covered pixel
    # from the end of the stored image to the left or top.
    begin_xy: tuple[int, int] = (0, 0)

    def boxes_in_pixels(self, boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes of the upright image in the frame of `pixels`."""
        boxes: NDArray[np.float64] = (boxes_xyxy + np.tile(self.begin_xy, 2)) / self.reduction
        return boxes


EnoughSize = Callable[[tuple[int, int]], tuple[int, int]]


def read_image(path: Path) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels, upright, channels last in memory.

    The first frame of an animation; alpha is dropped, not blended (aerial images store a fourth band there).
    """
    return read_reduced(path).pixels


def read_reduced(path: Path, enough: EnoughSize | None = None) -> DecodedImage:
    """An image decoded as small as `enough` allows if its format supports that (JPEG).

    Args:
        enough: maps height, width of the upright image to the minimum decoded size; None: full size.
    """
    with opened(path) as (image, header):
        reduction = 1
        if enough is not None and image.format in JPEG_FORMATS:
            reduction = reduction_for(header.size_hw, enough(header.size_hw))
        _reduce(image, reduction)
        begin_xy = _begin_xy(header, reduction)
        return DecodedImage(_to_tensor(_upright_rgb(image)), header.size_hw, reduction, begin_xy)


def reduction_for(size_hw: tuple[int, int], enough_hw: tuple[int, int]) -> int:
    """The largest of 1, 2, 4, 8 that keeps both sides at least as long as `enough_hw`."""
    largest = min(size_hw[0] / enough_hw[0], size_hw[1] / enough_hw[1])
    return next((reduction for reduction in REDUCTIONS if reduction <= largest), 1)


def _begin_xy(header: Header, reduction: int) -> tuple[int, int]:
    """Where the extra pixels at a reduced image's right and bottom end up when it is turned upright."""
    height, width = header.raw_size_hw
    right, bottom = -width % reduction, -height % reduction
    left = {2: right, 3: right, 6: bottom, 7: bottom}
    top = {3: bottom, 4: bottom, 7: right, 8: right}
    return left.get(header.orientation, 0), top.get(header.orientation, 0)


def _reduce(image: Image.Image, reduction: int) -> None:
    """Make Pillow decode an opened JPEG at 1 / `reduction` of its size (rounded up)."""
    if reduction > 1:
        image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))


def decode_image(content: bytes, where: str) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels, upright, of an image file in memory; `where` names it in messages."""
    with opened(io.BytesIO(content), where) as (image, _):
        return _to_tensor(_upright_rgb(image))


def to_pixels(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels of an opened image, upright."""
    if 0 in image.size:
        raise DatasetError(f"image without pixels, {image.width} x {image.height}", fix="remove it")
    return _to_tensor(_upright_rgb(image))


def read_header(path: Path, *, decode: bool = False) -> Header:
    """Stored size and orientation; `decode` also checks that every pixel can be read."""
    with opened(path) as (image, header):
        if decode:
            if image.format in JPEG_FORMATS:  # still reads the whole file, in half the time
                _reduce(image, REDUCTIONS[0])
            image.load()
        return header


def count_frames(path: Path) -> int:
    """Frames of an animation or pages of a TIFF, without decoding them; 1 for any other image.

    Reduced copies and masks in a TIFF do not count, nor do extra images that phones add to a JPEG.
    """
    with suppress(DatasetError), opened(path, any_size=True) as (image, _), no_warnings():
        if image.format in ("GIF", "PNG", "WEBP", "AVIF"):
            return getattr(image, "n_frames", 1)
        if image.format == "TIFF":
            num_pages = 0
            for page in ImageSequence.Iterator(image):
                kind = page.tag_v2.get(NEW_SUBFILE_TYPE, 0)  # type: ignore[attr-defined]
                num_pages += not kind & (REDUCED | MASK)
            return num_pages
    return 1


def upright(record: Record, header: Header) -> Record:
    """The record with boxes and size in the upright frame (see above for when that changes anything)."""
    boxes_are_raw = header.swaps_sides and record.size_hw == header.raw_size_hw != header.size_hw
    if not boxes_are_raw:
        return record
    height, width = header.raw_size_hw
    x1, y1, x2, y2 = record.boxes_xyxy.T
    turned = {
        5: (y1, x1, y2, x2),
        6: (height - y2, x1, height - y1, x2),
        7: (height - y2, width - x2, height - y1, width - x1),
        8: (y1, width - x2, y2, width - x1),
    }
    boxes_xyxy = np.stack(turned[header.orientation], axis=1)
    return replace(record, boxes_xyxy=boxes_xyxy, size_hw=header.size_hw)


@contextmanager
def opened(
    file: Path | io.BytesIO, where: str = "", *, any_size: bool = False
) -> Iterator[tuple[Image.Image, Header]]:
    """An opened image and its header; any error in the block becomes a `DatasetError` with the path.

    With `any_size`, images with more pixels than Pillow decodes are opened too.

    ``except Exception`` because Pillow's decoders raise nearly any kind of error on broken files (OSError,
    SyntaxError, struct.error, ValueError, IndexError, ...), and to the user all of them mean the same.
    """
    where = where or str(file)
    try:
        if isinstance(file, Path) and os.path.lexists(file):
            check_regular(file)  # opening a pipe may block forever
        with _open_quietly(file, any_size) as image:
            if 0 in image.size:
                raise DatasetError("image without pixels", where=where, fix="remove it")
            if image.format == "EPS":  # a program, which Pillow would run in Ghostscript
                raise DatasetError(
                    "EPS images are not supported: reading one runs a program",
                    where=where,
                    fix="convert it to PNG",
                )
            yield image, Header(_raw_size_hw(image), _orientation(image, may_decode=not any_size))
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(
            NOT_FOUND, where=where, fix="correct the name, or the folder of images (root)"
        ) from None
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"image has too many pixels ({error})",
            where=where,
            fix="predict on tiles (--tile 640) if it is an 8-bit PNG or TIFF; otherwise, and for training, "
            "cut it into several images",
        ) from error
    except Exception as error:
        raise DatasetError(
            _what_is_wrong(file, error), where=where, fix="replace the file, or remove the image"
        ) from error


def _what_is_wrong(file: Path | io.BytesIO, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"image cannot be read: {reason_of(error)}"
    if isinstance(file, Path) and os.path.isfile(file) and file.stat().st_size == 0:
        return "image file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        if _is_heif(file):
            return "image is in HEIC (HEIF) format, which Pillow does not support: convert it to JPEG or PNG"
        return "image cannot be decoded: not an image, or in a format that Pillow does not support"
    if isinstance(error, MemoryError):
        return "image cannot be decoded: out of memory"
    return f"image cannot be decoded: {error}"


def _is_heif(file: Path | io.BytesIO) -> bool:
    if isinstance(file, Path):
        with file.open("rb") as opened_file:
            head = opened_file.read(12)
    else:
        head = file.getvalue()[:12]
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


@contextmanager
def no_warnings() -> Iterator[None]:
    """Ignore all warnings, in one thread at a time: ``catch_warnings`` alone is not safe between threads.

    Only for short work such as opening a file; pixels are decoded outside of it.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open_quietly(file: Path | io.BytesIO, any_size: bool = False) -> Image.Image:
    """Open without Pillow's warnings about large images and odd metadata: the user need not act on them.

    Up to Pillow's hard limit (179 megapixels) large images are accepted; above it Pillow raises.
    """
    with no_warnings():
        limit = Image.MAX_IMAGE_PIXELS
        try:
            Image.MAX_IMAGE_PIXELS = None if any_size else limit
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image, *, may_decode: bool = True) -> int:
    """EXIF orientation; 1 if there is none or it is invalid.

    For a PNG, Pillow decodes the pixels to get it, since EXIF may come after them; without `may_decode` only
    EXIF before the pixels is read.
    """
    with no_warnings():
        try:
            exif = image.getexif() if may_decode else Image.Image.getexif(image)
            orientation = exif.get(EXIF_ORIENTATION, 1)
        except Exception:  # the pixels may be fine: use the image despite damaged metadata
            return 1
    return orientation if orientation in TURN_UPRIGHT else 1


def _raw_size_hw(image: Image.Image) -> tuple[int, int]:
    """Height, width as stored; newer versions of Pillow report a TIFF's upright size when opening it."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(IMAGE_LENGTH, image.height), tags.get(IMAGE_WIDTH, image.width)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()  # turns a TIFF upright, and removes the orientation from its tags
    turn = TURN_UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_gray_to_8_bit(image)).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return converted
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns when such a palette is converted to RGB directly.
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy an RGB image


def _gray_to_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    """A gray image of more than 8 bits scaled to 0..255 (Pillow's own conversion clips it to white).

    Files do not say which value is white: 12 bits are stored as 16, 8 as 32. White is the maximum of the
    smallest common bit depth that fits all values; floats up to 1 are fractions. NaN is black.
    """
    values: NDArray[Any] = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of TIFF, which Pillow ignores here
    if image.mode == "I" and tags.get(BITS_PER_SAMPLE) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)
    is_float = values.dtype.kind == "f"
    largest = float((values[np.isfinite(values)] if is_float else values).max(initial=0))
    white = next((2.0**bits - 1 for bits in USUAL_BITS if largest < 2**bits), largest)
    if is_float and largest <= 1:
        white = 1.0
    scaled = np.nan_to_num(values.astype(np.float64), posinf=white, neginf=0) * (255 / white)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    return np.asarray(scaled.round().clip(0, 255), np.uint8)


def _to_tensor(image: Image.Image) -> Tensor:
    """The pixels of an RGB image, channels last.

    In strips: for a whole large image Pillow makes two more copies, in newly allocated memory (74 ms at
    4000 x 3000; 12 in strips).
    """
    if image.height * image.width <= STRIPS_ABOVE:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def pixels_of(image: object, color: Color = "rgb") -> Tensor:
    """An image as an upright RGB uint8 tensor `(3, height, width)` on the CPU, channels last in memory.

    Args:
        image: a path, a PIL image, or an array or tensor as in `array_pixels`.
        color: order of the channels of an array or tensor.

    Raises:
        DatasetError: a file that cannot be read, or an array that is not such an image.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_pixels(image)
    if isinstance(image, np.ndarray | Tensor):
        return array_pixels(image, color)
    raise DatasetError(
        f"{type(image).__name__} is not an image",
        fix="give a path, a PIL image, an array (height, width, 3), a tensor (3, height, width), or a list "
        "of them",
    )
