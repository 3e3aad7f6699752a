"""ONNX files of other projects, as small graphs whose outputs are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fcos.errors import WeightsError
from fcos.export.other_onnx import OtherOnnx, open_other

WHITE = torch.full((3, 16, 32), 255, dtype=torch.uint8)


def save(
    path: Path, nodes: list[Any], inputs: Any, outputs: Any, constants: dict[str, Any], **metadata: str
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def yolo(path: Path, table: Any, mean_at: Any = None, size: Any = (64, 64), **metadata: str) -> Path:
    """A file whose output is a table, plus the mean of its input where `mean_at` is 1."""
    table = np.asarray(table, np.float32)[None]
    mask = np.zeros_like(table) if mean_at is None else np.asarray(mean_at, np.float32)[None]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "mask"], ["added"]),
        helper.make_node("Add", ["table", "added"], ["output0"]),
    ]
    inputs = {"images": (TensorProto.FLOAT, [1, 3, *size])}
    outputs = {"output0": (TensorProto.FLOAT, list(table.shape))}
    return save(path, nodes, inputs, outputs, {"table": table, "mask": mask}, **metadata)


def opened(path: Path, names: Path | None = None, classes: tuple[str, ...] = ("cat", "dog")) -> OtherOnnx:
    other = open_other(path, names, classes)
    assert other is not None
    return other


def test_yolo_boxes_by_hand(tmp_path: Path) -> None:
    # an image of 16 x 32 becomes 32 x 64, with 16 rows of gray above and below
    columns = [
        # center x, y, width, height, score of cat, of dog
        [20, 32, 8, 16, 0.0, 0.3],  # xyxy 16, 24, 24, 40 of the input: 8, 4, 12, 12 of the image
        [20, 32, 8, 15, 0.2, 0.0],  # a worse cat in the same place: goes
        [60, 40, 16, 32, 0.0005, 0.1],  # 52, 24, 68, 56: clipped to 26, 4, 32, 16
    ]
    table = np.array(columns).T
    mean_at = np.zeros_like(table)
    mean_at[4, 0] = 1
    found = opened(yolo(tmp_path / "a.onnx", table, mean_at)).predict(WHITE)

    mean = (1 + 114 / 255) / 2
    assert [found.class_name(i) for i in range(len(found))] == ["cat", "dog", "dog"]
    assert found.scores.tolist() == pytest.approx([mean, 0.3, 0.1], abs=1e-5)
    assert found.boxes_xyxy.tolist() == [[8, 4, 12, 12], [8, 4, 12, 12], [26, 4, 32, 16]]
    assert found.image is not None
    assert found.image.size == (32, 16)


def test_yolo_after_nms_by_hand(tmp_path: Path) -> None:
    rows = [[16, 24, 24, 40, 0.5, 1], [0, 16, 64, 48, 0.75, 0], [0, 16, 64, 48, 0.0, 0]]
    found = opened(yolo(tmp_path / "a.onnx", rows)).predict(WHITE)

    assert found.scores.tolist() == [0.75, 0.5]
    assert found.labels.tolist() == [0, 1]
    assert found.boxes_xyxy.tolist() == [[0, 0, 32, 16], [8, 4, 12, 12]]


def test_an_upright_image_is_padded_at_its_sides(tmp_path: Path) -> None:
    found = opened(yolo(tmp_path / "a.onnx", [[16, 0, 48, 64, 0.5, 0]])).predict(WHITE.permute(0, 2, 1))

    assert found.boxes_xyxy.tolist() == [[0, 0, 16, 32]]


def detr(path: Path, labels: Any = (1, 0)) -> Path:
    """Boxes are fractions of the sizes given; the first score is the mean of the input."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "zero"], ["scores"]),
        helper.make_node("Cast", ["orig_target_sizes"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["sizes", "sizes"], ["four"], axis=1),
        helper.make_node("Mul", ["fractions", "four"], ["boxes"]),
        helper.make_node("Identity", ["fixed"], ["labels"]),
    ]
    inputs = {
        "images": (TensorProto.FLOAT, ["N", 3, 48, 48]),
        "orig_target_sizes": (TensorProto.INT64, ["N", 2]),
    }
    outputs = {
        "labels": (TensorProto.INT64, [1, 2]),
        "boxes": (TensorProto.FLOAT, ["N", 2, 4]),
        "scores": (TensorProto.FLOAT, [1, 2]),
    }
    constants = {
        "zero": np.array([[0, -0.5]], np.float32),
        "fractions": np.array([[[0.25, 0.5, 0.75, 1], [0, 0, 0.5, 0.5]]], np.float32),
        "fixed": np.array([labels], np.int64),
    }
    return save(path, nodes, inputs, outputs, constants)


def test_detr_boxes_by_hand(tmp_path: Path) -> None:
    found = opened(detr(tmp_path / "a.onnx")).predict(WHITE)

    assert found.scores.tolist() == [1.0, 0.5]
    assert found.boxes_xyxy.tolist() == [[8, 8, 24, 16], [0, 0, 16, 8]]
    assert [found.class_name(i) for i in range(2)] == ["dog", "cat"]


def test_names_are_those_of_the_file_or_given_or_of_the_data(tmp_path: Path) -> None:
    named = yolo(tmp_path / "a.onnx", np.zeros((6, 3)), names="{1: 'two', 0: 'one'}")
    plain = yolo(tmp_path / "b.onnx", np.zeros((6, 3)), names="not a dict")
    (tmp_path / "names.txt").write_text("background\nfirst\nsecond\n")

    assert opened(named, tmp_path / "names.txt").class_names == ("one", "two")
    assert opened(plain, tmp_path / "names.txt").class_names == ("first", "second")
    assert opened(plain).class_names == ("cat", "dog")


def test_a_label_without_a_name_is_an_error(tmp_path: Path) -> None:
    other = opened(detr(tmp_path / "a.onnx", labels=(7, 0)))

    with pytest.raises(
        WeightsError, match=r"a.onnx predicted the label 7, but there are only 2 class names[\s\S]*--other"
    ):
        other.predict(WHITE)


def test_the_size_of_a_file_that_takes_any_is_in_its_metadata(tmp_path: Path) -> None:
    sized = yolo(tmp_path / "a.onnx", np.zeros((6, 3)), size=("h", "w"), imgsz="[96, 128]")
    unsized = yolo(tmp_path / "b.onnx", np.zeros((6, 3)), size=("h", "w"))

    assert opened(sized).size_hw == (96, 128)
    assert opened(unsized).size_hw == (640, 640)


def test_an_unknown_layout_is_described(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    kind = (TensorProto.FLOAT, [1, 3, 8, 8])
    path = save(tmp_path / "a.onnx", nodes, {"x": kind}, {"y": kind}, {})

    with pytest.raises(
        WeightsError,
        match=r"layout of a.onnx is unknown: inputs x; outputs y \[1, 3, 8, 8\]\n  in: .*\n  fix: give",
    ):
        open_other(path, None, ())


def test_our_own_file_is_none_of_these(exported: dict[str, Path]) -> None:
    assert open_other(exported["onnx"], None, ()) is None
