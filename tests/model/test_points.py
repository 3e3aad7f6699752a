from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st

from fcos.model.points import box_distances, distances_to_boxes, level_name, make_grid

from .conftest import NETWORK_HW, STRIDES, Peer

pixels = st.integers(-500, 1500)


def test_points_are_the_centers_of_the_cells_row_by_row() -> None:
    grid = make_grid((16, 24), [8, 16])
    fine = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    coarse = [[8, 8], [24, 8]]
    assert grid.points.tolist() == fine + coarse
    assert grid.strides.tolist() == [8] * 6 + [16] * 2
    assert grid.level_sizes == ((2, 3), (1, 2))
    assert grid.points_per_level == [6, 2]


def test_levels_have_the_names_of_the_paper() -> None:
    assert [level_name(stride) for stride in (8, 16, 32, 64, 128)] == ["P3", "P4", "P5", "P6", "P7"]


def test_a_side_that_the_stride_does_not_divide_has_one_more_cell() -> None:
    assert make_grid((17, 16), [8]).level_sizes == ((3, 2),)


def test_points_are_those_of_detectron2_adelaidet_mmdetection_and_the_official_code(
    peer: Callable[[str], Peer],
) -> None:
    grid = make_grid(NETWORK_HW, STRIDES)
    for name in ("detectron2_r50", "adelaidet_r50_1x", "mmdet_r50_caffe", "official_r50_imprv"):
        assert torch.equal(grid.points, torch.from_numpy(peer(name).targets["points"])), name


def test_torchvision_has_its_points_half_a_stride_further_up_and_left(peer: Callable[[str], Peer]) -> None:
    grid = make_grid(NETWORK_HW, STRIDES)
    theirs = torch.from_numpy(peer("torchvision_r50").targets["points"])
    fine = grid.strides <= 32
    assert torch.equal(theirs[fine], grid.points[fine] - grid.strides[fine, None] / 2)
    # On coarse levels their step is the padded size over the number of cells: 160 // 3 for P6, not 64.
    assert theirs[grid.strides == 64][:, 1].unique().tolist() == [0, 53, 106]


def test_distances_by_hand() -> None:
    points = torch.tensor([[10.0, 20.0], [0.0, 0.0]])
    boxes = torch.tensor([[4.0, 5.0, 30.0, 60.0]])
    assert box_distances(points, boxes).tolist() == [[[6, 15, 20, 40]], [[-4, -5, 30, 60]]]


@given(x=pixels, y=pixels, box=st.tuples(pixels, pixels, pixels, pixels))
def test_boxes_come_back_from_their_distances(x: int, y: int, box: tuple[int, int, int, int]) -> None:
    points, boxes = torch.tensor([[x, y]]).float(), torch.tensor([box]).float()
    assert torch.equal(distances_to_boxes(points, box_distances(points, boxes)[:, 0]), boxes)


def test_boxes_of_a_batch_come_from_the_same_points() -> None:
    points = torch.tensor([[8.0, 8.0]]).expand(2, 1, 2)
    distances = torch.tensor([[[1.0, 2.0, 3.0, 4.0]], [[8.0, 8.0, 0.0, 0.0]]])
    assert distances_to_boxes(points, distances).tolist() == [[[7, 6, 11, 12]], [[0, 0, 8, 8]]]
