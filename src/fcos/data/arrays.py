"""Convert arrays and tensors to 8-bit RGB images; ambiguous ones are rejected."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from fcos.errors import DatasetError

Color = Literal["rgb", "bgr"]


def array_pixels(image: NDArray[Any] | Tensor, color: Color = "rgb") -> UInt8[Tensor, "3 height width"]:
    """RGB pixels on the CPU, channels last in memory; a copy.

    Args:
        image: uint8, or floats in [0, 1]. Arrays are `(height, width, channels)`, tensors `(channels, height,
            width)`; both may be `(height, width)`; 1, 3 or 4 channels (the fourth is dropped).
        color: the order of the first three channels; "bgr" is OpenCV's.

    Raises:
        DatasetError: unsupported shape, dtype or range; the message states shape and dtype.
    """
    if color not in ("rgb", "bgr"):
        raise DatasetError(f'color is {color!r}, not "rgb" or "bgr"', fix='pass color="rgb" or color="bgr"')
    _check_shape(image)
    values = _as_bytes(image)
    if values.ndim == 2:
        values = values[..., None]
    elif isinstance(image, Tensor):
        values = values.transpose(1, 2, 0)
    values = values[..., :3] if values.shape[2] > 1 else values.repeat(3, axis=2)
    values = values[..., ::-1] if color == "bgr" else values
    return torch.from_numpy(np.array(values, order="C")).permute(2, 0, 1)  # a copy: may be read-only


def _as_bytes(image: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    values: NDArray[Any]
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        values = (image.float() if image.is_floating_point() else image).numpy()  # numpy has no bfloat16
    else:
        values = image
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        fix = "scale its values to 0..255, and cast it to uint8"
        raise _refused(image, "be uint8, or floats in [0, 1]", fix)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # also if they are NaN
        raise _refused(
            image,
            "have values in [0, 1] if its dtype is float",
            "divide by the largest possible value (255), or undo its normalization",
            f", with values from {low:.4g} to {high:.4g}",
        )
    scaled: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return scaled


def _check_shape(image: NDArray[Any] | Tensor) -> None:
    """Reject ambiguous shapes: a guess would sometimes be silently wrong."""
    shape = tuple(image.shape)
    is_array = isinstance(image, np.ndarray)
    num_channels = 1 if len(shape) == 2 else shape[2 if is_array else 0] if len(shape) == 3 else 0
    if num_channels not in (1, 3, 4):
        layout = "(height, width, 3)" if is_array else "(3, height, width)"
        raise _refused(image, f"have shape {layout} or (height, width)", "reorder its axes")
    if 0 in shape:
        raise _refused(image, "have pixels", "remove it")


def _refused(image: NDArray[Any] | Tensor, must: str, fix: str, more: str = "") -> DatasetError:
    kind = "an array" if isinstance(image, np.ndarray) else "a tensor"
    is_ = f"this one has shape {tuple(image.shape)} and dtype {image.dtype}{more}"
    return DatasetError(f"an image given as {kind} must {must}; {is_}", fix=fix)
