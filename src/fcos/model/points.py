"""The locations at which FCOS predicts (section 3.1 of the paper).

Level i is a grid over the padded network input; its cell at column x, row y is at the input pixel
``(x + 0.5) * stride, (y + 0.5) * stride``, the center of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fcos.config.conventions import PointPlace

Size = int | torch.SymInt  # a number, or a formula while a graph is traced


class PointGrid(NamedTuple):
    """All points of all levels, finest level first, row by row.

    Attributes:
        points: x, y in network input pixels.
        strides: stride of each point's level, input pixels.
        level_sizes: height, width of each level's grid.
    """

    points: Float[Tensor, "points 2"]
    strides: Float[Tensor, " points"]
    level_sizes: tuple[tuple[int, int], ...]

    @property
    def points_per_level(self) -> list[int]:
        """Number of points of each level."""
        return [height * width for height, width in self.level_sizes]


def level_name(stride: int) -> str:
    """The paper's name for the level with this stride: P3 for 8."""
    return f"P{round(math.log2(stride))}"


def make_grid(
    image_hw: tuple[int, int],
    strides: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    place: PointPlace = "center",
) -> PointGrid:
    """The grid of points over an image of this (padded) size.

    A level's grid has ``ceil(side / stride)`` cells, which is what convolutions with stride 2 and padding 1
    give.

    Args:
        image_hw: height, width in pixels.
        strides: of the levels, pixels.
        device: of the points.
        place: of the point in its cell: the center, or (torchvision) the upper left corner. torchvision also
            steps by the padded side over the number of cells, rounded down: 61 and 114 pixels instead of 64
            and 128 for an input 800 pixels high.
    """
    sizes = tuple((-(-image_hw[0] // stride), -(-image_hw[1] // stride)) for stride in strides)
    points, point_strides = [], []
    for stride, size in zip(strides, sizes, strict=True):
        points.append(level_points(size, stride, image_hw, device, place=place))
        point_strides.append(torch.full((size[0] * size[1],), float(stride), device=device))
    return PointGrid(torch.cat(points), torch.cat(point_strides), sizes)


def level_points(
    grid_hw: tuple[Size, Size],
    stride: int,
    image_hw: tuple[Size, Size],
    device: torch.device | str = "cpu",
    *,
    place: PointPlace = "center",
) -> Float[Tensor, "points 2"]:
    """The points of one level, row by row, of a grid of `grid_hw` cells; the other arguments as above."""
    offset = 0.0 if place == "corner" else 0.5
    sides: list[Tensor] = []
    for cells, side in zip(grid_hw, image_hw, strict=True):
        step: Any = side // cells if place == "corner" else stride
        sides.append((torch.arange(cells, device=device, dtype=torch.float32) + offset) * step)
    rows, columns = torch.meshgrid(sides, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=-1)


def box_distances(
    points: Float[Tensor, "points 2"], boxes_xyxy: Float[Tensor, "boxes 4"]
) -> Float[Tensor, "points boxes 4"]:
    """Distances from every point to the sides of every box (FCOS eq. 1).

    Args:
        points: x, y in input pixels.
        boxes_xyxy: xyxy in input pixels.

    Returns:
        ltrb in input pixels; negative where the point is outside the box.
    """
    (x, y), (left, top, right, bottom) = points.T[..., None], boxes_xyxy.T
    # stored side by side: three times as fast as one after the other for each pair
    return torch.stack([x - left, y - top, right - x, bottom - y]).permute(1, 2, 0)


def distances_to_boxes(
    points: Float[Tensor, "*batch points 2"], distances: Float[Tensor, "*batch points 4"]
) -> Float[Tensor, "*batch points 4"]:
    """Boxes from distances: the inverse of eq. 1.

    Args:
        points: x, y in input pixels.
        distances: ltrb in input pixels.

    Returns:
        xyxy in input pixels.
    """
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)
