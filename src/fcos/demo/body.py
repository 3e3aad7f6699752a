"""Reads the body of a request: one image file, within limits of bytes, pixels and work."""

from __future__ import annotations

import io
from functools import cache

from fastapi import HTTPException, Request
from PIL import Image, UnidentifiedImageError
from starlette.requests import ClientDisconnect
from torch import Tensor

from fcos.data.image import no_warnings, to_pixels
from fcos.terminal import printable

MAX_BYTES = 32 * 2**20  # of one image file
MAX_HELD_BYTES = 256 * 2**20  # of all files received and waiting
MAX_PIXELS = 64_000_000  # of one image; 200 MB as RGB
WIDE_MODES = ("I", "F")  # more than 8 bits per value: decoding takes several times the memory
WIDE_PIXELS = 8  # pixels that each of their pixels counts as
MAX_SCANS = 20  # of a JPEG at `MAX_PIXELS`; more for smaller ones; encoders write about ten
# Pillow's other decoders start programs (EPS: Ghostscript) or are hardly ever used.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
START_OF_SCAN = b"\xff\xda"  # in the pixels of a JPEG, 0xff is followed by 0 or a restart marker


class Inbox:
    """Reads request bodies; limits the size of each, and of all that are waiting."""

    held_bytes = 0

    async def read(self, request: Request) -> bytearray:
        """Read a body; call `forget` with its length afterwards.

        Raises:
            HTTPException: 413 as soon as it is too long, whatever its Content-Length; 415 without a body or
                with a form; 503 if too many are waiting.
        """
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(
                415, "this is a form: send the image file itself as the body (curl --data-binary)"
            )
        content = bytearray()
        try:
            async for part in request.stream():
                content += part
                self.held_bytes += len(part)
                if len(content) > MAX_BYTES:
                    detail = f"the file is larger than {MAX_BYTES / 2**20:.0f} MB: resize the image"
                    raise HTTPException(413, detail)
                if self.held_bytes > MAX_HELD_BYTES:
                    raise busy()
            if not content:
                raise HTTPException(415, "there is no image in the request: send the file as its body")
        except BaseException as error:
            self.forget(len(content))
            if isinstance(error, ClientDisconnect):  # nobody reads this response
                raise HTTPException(400, "the upload ended early") from None
            raise
        return content

    def forget(self, num_bytes: int) -> None:
        """Release a body that has been processed."""
        self.held_bytes -= num_bytes


def busy() -> HTTPException:
    """The error when too many images are in progress."""
    return HTTPException(503, "too many images at once: try again", headers={"Retry-After": "5"})


def decode_image(content: bytes | bytearray, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image file: `(3, height, width)` uint8 RGB, upright.

    ``except Exception`` because Pillow's decoders raise nearly any kind of error on broken files.

    Raises:
        HTTPException: 413 with too many pixels, 415 if it cannot be read.
    """
    try:
        with no_warnings():  # about large images: we have our own limit
            opened = Image.open(io.BytesIO(content), formats=_formats())
        _check_size(opened, content, max_pixels)
        return to_pixels(opened)
    except HTTPException:
        raise
    except Image.DecompressionBombError:
        raise _too_large("far too many pixels", max_pixels) from None
    except UnidentifiedImageError:
        raise HTTPException(
            415, "this is not a readable image: send a JPEG, PNG, WebP, ... file as the body"
        ) from None
    except Exception as error:
        detail = printable(f"this image is broken and cannot be read: {error}")
        raise HTTPException(415, detail) from error


def _check_size(opened: Image.Image, content: bytes | bytearray, max_pixels: int) -> None:
    """Reject images that would take too much memory or time, before decoding them."""
    num_pixels = opened.width * opened.height
    weight = WIDE_PIXELS if opened.mode.startswith(WIDE_MODES) else 1
    if num_pixels * weight > max_pixels:
        depth = " with more than 8 bits" if weight > 1 else ""
        raise _too_large(f"{num_pixels / 1e6:.0f} million pixels{depth}", max_pixels // weight)
    num_scans = content.count(START_OF_SCAN) if opened.format in ("JPEG", "MPO") else 0
    if num_pixels * num_scans > max_pixels * MAX_SCANS:  # each scan processes all pixels
        raise HTTPException(413, f"the JPEG is stored in {num_scans} scans: save it as a baseline JPEG")


def _too_large(what: str, max_pixels: int) -> HTTPException:
    return HTTPException(413, f"the image has {what}; the limit is {max_pixels / 1e6:.0f} million: resize it")


@cache
def _formats() -> list[str]:
    """The `FORMATS` that the installed Pillow and its plugins can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
