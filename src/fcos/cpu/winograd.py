"""3x3 convolutions on CPUs with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3).

A tile of 6 x 6 inputs gives 4 x 4 outputs by 36 products for each pair of channels instead of 144 (Lavin and
Gray, arXiv 1509.09308): ``Y = A^T [(G g G^T) * (B^T d B)] A``. The matrices follow from the points at which
polynomials are evaluated. With 0, +-sqrt(1/2), +-sqrt(2) and infinity the largest error is up to twice that
of the direct convolution; with the usual 0, +-1, +-2 and infinity it is seven times that.

Tiles are transformed in blocks that stay in the processor's cache. All products of a block are one grouped
1x1 convolution, or a transposed one for the gradient of the weights: on the processors measured these are
PyTorch's fastest matrix products.

Worth: `fcos_r50` takes 1.2 times as long without it for a prediction at 800 x 1344, and 1.3 times for a
training step at 800 x 1088 (AMD EPYC, 2 threads; docs/performance.md has the layers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcos.cpu import onednn

SMALL, LARGE = math.sqrt(0.5), math.sqrt(2.0)  # the points; their product is 1
SUM_OF_SQUARES = 2.5
POINTWISE: onednn.Shape = ([0, 0], [1, 1], [1, 1], 36)  # of the convolution: 1x1, a group for each point
TILES_OF_BLOCK = 480  # 18 MB of 256 channels

# Where it is faster; decided per image, so that a result does not depend on the other images of the batch.
MIN_CHANNELS = 128
MIN_CHANNELS_OF_ONE_CORE = 96  # forward only: the transforms gain less from several cores than the products
MIN_TILES = 200
MIN_TILES_AHEAD = 128  # with weights that were transformed ahead

Slices = Sequence[Tensor]


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` with gradients, in float32 on a CPU, channels-last."""
    result: Tensor = _Winograd.apply(x, weight, bias)
    return result


def pays(x: Tensor, conv: Any, *, ahead: bool = False) -> bool:
    """Whether `conv3x3` gives the result of a convolution (with the shape of an `nn.Conv2d`), and faster.

    With `ahead` the same for `conv3x3_ahead`.
    """
    if torch.compiler.is_compiling():  # or exporting: sizes may be unknown
        return False
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    if shape != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or conv.padding_mode != "zeros":
        return False
    rows, columns = _tiles(*x.shape[2:])
    on_one_core = ahead and torch.get_num_threads() == 1
    return (
        min(conv.in_channels, conv.out_channels)
        >= (MIN_CHANNELS_OF_ONE_CORE if on_one_core else MIN_CHANNELS)
        and rows * columns >= (MIN_TILES_AHEAD if ahead else MIN_TILES)
        and x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and onednn.is_available()
    )


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return conv3x3_ahead(x, transform_weight(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            conv3x3_ahead(gradient, transform_weight(weight.transpose(0, 1), turned=True)) if for_x else None,
            _weight_gradient(x, gradient) if for_weight else None,
            gradient.sum((0, 2, 3)) if for_bias else None,
        )


def transform_weight(weight: Tensor, *, turned: bool = False) -> Tensor:
    """G g G^T of `(C out, C in, 3, 3)`: a 1x1 filter for each of the 36 points, `(36 * C out, C in, 1, 1)`.

    `turned`: of the filters turned by 180 degrees.
    """
    matrix = WEIGHT_MATRIX.flip(1) if turned else WEIGHT_MATRIX
    return (matrix @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, weight.shape[1], 1, 1)


def conv3x3_ahead(x: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv3x3` without gradients, by what `transform_weight` gives, which is four times as large."""
    channels_out, channels_in = len(transformed) // 36, transformed.shape[1]
    images = x.permute(0, 2, 3, 1).contiguous()
    count, height, width, _ = images.shape
    rows, columns = _tiles(height, width)
    result = torch.empty(count, channels_out, 4 * rows, 4 * columns, memory_format=torch.channels_last)
    for block in _blocks(images):
        part = block.cut(images, border=1)
        shape = block.shape(part)
        tiles = part.new_empty(*shape, 6, 6, channels_in)
        _along_both(_input_transform, part, tiles.permute(3, 4, 0, 1, 2, 5))
        points = tiles.view(1, -1, columns, 36 * channels_in).permute(0, 3, 1, 2)
        products = onednn.convolution(points, transformed, None, POINTWISE).permute(0, 2, 3, 1)
        output = block.part(result.permute(0, 2, 3, 1))
        _output_into(output, products.reshape(*shape, 6, 6, channels_out))
        if bias is not None:
            output += bias
    if (height, width) != result.shape[2:]:
        result = result[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
    return result  # not a view: an in-place activation may follow


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    images, gradients = (t.permute(0, 2, 3, 1).contiguous() for t in (x, gradient))
    channels_in, channels_out = images.shape[3], gradients.shape[3]
    products = []
    for block in _blocks(images):
        part, back_part = block.cut(images, border=1), block.cut(gradients)
        shape = block.shape(part)
        tiles, of_tiles = _by_point(part, shape, channels_in)
        back, of_back = _by_point(part, shape, channels_out)
        _along_both(_input_transform, part, of_tiles)
        _along_both(_output_transposed, back_part, of_back)
        # At each point the sum over tiles of back^T @ tiles; no matrix product of PyTorch is as fast.
        pixels, filters = tiles.view(1, -1, channels_in, 1), back.view(-1, channels_out, 1, 1)
        products.append(F.conv_transpose2d(pixels, filters, groups=36))
    weight = WEIGHT_MATRIX.T @ reduce(Tensor.add_, products).view(36, -1)
    return weight.view(3, 3, channels_out, channels_in).permute(2, 3, 0, 1)


def _by_point(like: Tensor, shape: tuple[int, int, int], channels: int) -> tuple[Tensor, Tensor]:
    """Memory (36, number of tiles, C) and its view (6, 6, *shape, C).

    oneDNN multiplies them two to ten times as fast where their number is not a multiple of 4, so that one
    tile of zeros may follow.
    """
    number = math.prod(shape)
    memory = like.new_empty(36, number + (number % 4 == 0), channels)
    memory[:, number:] = 0
    return memory, memory[:, :number].view(6, 6, *shape, channels)


# Blocks of tiles ------------------------------------------------------------------------------------------


def _tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // 4), -(-width // 4)


class _Block(NamedTuple):
    """Some rows of tiles of some images."""

    images: slice
    top: int
    bottom: int
    columns: int

    def shape(self, part: Tensor) -> tuple[int, int, int]:
        """Images, rows and columns of tiles of its part of images."""
        return part.shape[0], self.bottom - self.top, self.columns

    def part(self, images: Tensor) -> Tensor:
        """Its part of (N, H, W, C)."""
        return images[self.images, 4 * self.top : 4 * self.bottom]

    def cut(self, images: Tensor, border: int = 0) -> Tensor:
        """Whole tiles and a border of (N, H, W, C), with zeros outside of the images."""
        height, width = images.shape[1:3]
        top, bottom = 4 * self.top - border, 4 * self.bottom + border
        part = images[self.images, max(top, 0) : bottom]
        right = 4 * self.columns - width + border
        return F.pad(part, (0, 0, border, right, max(-top, 0), max(bottom - height, 0)))


def _blocks(images: Tensor) -> Iterator[_Block]:
    count, height, width, _ = images.shape
    rows, columns = _tiles(height, width)
    together = max(1, TILES_OF_BLOCK // (rows * columns))
    parts = min(rows, max(1, round(rows * columns / TILES_OF_BLOCK)))
    for first in range(0, count, together):
        for top, bottom in pairwise(rows * i // parts for i in range(parts + 1)):
            yield _Block(slice(first, first + together), top, bottom, columns)


# Transforms -----------------------------------------------------------------------------------------------


def _weight_matrix() -> Tensor:
    """(36, 9): G for the rows of a filter times G for its columns."""
    rows = [[1.0, 0.0, 0.0]]
    for point, other in ((SMALL, LARGE), (LARGE, SMALL)):
        scale = 2 * point**2 * (point**2 - other**2)
        rows += [[1 / scale, signed / scale, signed**2 / scale] for signed in (point, -point)]
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


WEIGHT_MATRIX = _weight_matrix()


def _input_transform(d: Slices, out: Slices) -> None:
    """B^T along one side: six slices to six."""
    torch.sub(d[4], d[2], alpha=SUM_OF_SQUARES, out=out[0]).add_(d[0])
    for plus, minus, point in ((out[1], out[2], SMALL), (out[3], out[4], LARGE)):
        torch.sub(d[4], d[2], alpha=point**-2, out=plus)
        odd = torch.sub(d[3], d[1], alpha=point**-2, out=out[5])  # which is not needed yet
        torch.sub(plus, odd, alpha=point, out=minus)
        plus.add_(odd, alpha=point)
    torch.sub(d[5], d[3], alpha=SUM_OF_SQUARES, out=out[5]).add_(d[1])


def _output_transform(m: Slices, out: Slices) -> None:
    """A^T along one side: six slices to four."""
    sums, differences = (m[1] + m[2], m[3] + m[4]), (m[1] - m[2], m[3] - m[4])
    torch.add(m[0], sums[0], out=out[0]).add_(sums[1])
    torch.mul(differences[0], SMALL, out=out[1]).add_(differences[1], alpha=LARGE)
    torch.mul(sums[0], SMALL**2, out=out[2]).add_(sums[1], alpha=LARGE**2)
    torch.add(m[5], differences[0], alpha=SMALL**3, out=out[3]).add_(differences[1], alpha=LARGE**3)


def _output_transposed(y: Slices, out: Slices) -> None:
    """A along one side: gradients of four slices to those of six."""
    out[0].copy_(y[0])
    for plus, minus, point in ((out[1], out[2], SMALL), (out[3], out[4], LARGE)):
        torch.add(y[0], y[2], alpha=point**2, out=plus)
        odd = torch.mul(y[1], point, out=out[5]).add_(y[3], alpha=point**3)  # which is not needed yet
        torch.sub(plus, odd, out=minus)
        plus.add_(odd)
    out[5].copy_(y[3])


def _along_both(transform: Callable[[Slices, Slices], None], x: Tensor, out: Tensor) -> None:
    """Transform the rows, then the columns, of tiles that start at every fourth.

    (N, H, W, C) to (6, 6, N, rows of tiles, columns of tiles, C). Slice i of all tiles at once is every
    fourth row (column) from i on.
    """
    n, height, width, channels = x.shape
    rows, columns = out.shape[3:5]
    half = x.new_empty(6, n, rows, width, channels)
    transform([x[:, i : 4 * rows - 3 + i : 4] for i in range(height - 4 * rows + 4)], half.unbind())
    slices = [half[..., i : 4 * columns - 3 + i : 4, :] for i in range(width - 4 * columns + 4)]
    transform(slices, out.transpose(0, 1).unbind())


def _output_into(out: Tensor, tiles: Tensor) -> None:
    """A^T M A: (N, rows, columns, 6, 6, C) to (N, 4 * rows, 4 * columns, C)."""
    n, rows, columns, _, _, channels = tiles.shape
    half = tiles.new_empty(4, n, rows, columns, 6, channels)
    _output_transform(tiles.unbind(3), half.unbind())
    pixels = out.view(n, rows, 4, columns, 4, channels)
    _output_transform(half.unbind(4), pixels.permute(4, 2, 0, 1, 3, 5).unbind())
