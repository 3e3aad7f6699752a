"""Data sets in memory: lists, torch data sets and supervision's become files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.tv_tensors import BoundingBoxes

from fcos.data.annotations import Annotations
from fcos.data.check import check
from fcos.data.formats import read_annotations
from fcos.data.image import read_image
from fcos.data.in_memory import content_name, write_items
from fcos.errors import DatasetError

RED = np.full((4, 6, 3), (200, 10, 30), np.uint8)


def target(*boxes: list[float], labels: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"boxes": list(boxes), "labels": [0] * len(boxes) if labels is None else labels, **more}


def written(data: Any, folder: Path, names: Any = ("cat", "dog")) -> Annotations:
    return read_annotations(write_items(data, names, folder))


def test_a_list_of_arrays_comes_back_with_its_pixels_boxes_and_labels(tmp_path: Path) -> None:
    blue = np.full((5, 7, 3), (1, 2, 250), np.uint8)
    data = [(RED, target([1, 0.5, 3, 4], [0, 0, 6, 2], labels=[1, 0])), (blue, target())]
    annotations = written(data, tmp_path)
    assert annotations.class_names == ("cat", "dog")
    assert annotations.category_ids == (0, 1)
    assert annotations.image_ids.tolist() == [0, 1]  # data[i]
    assert annotations[0].boxes_xyxy.tolist() == [[1, 0.5, 3, 4], [0, 0, 6, 2]]
    assert annotations[0].labels.tolist() == [1, 0]
    assert annotations[0].areas.tolist() == [7, 12]
    assert len(annotations[1].labels) == 0
    assert annotations.sizes_hw.tolist() == [[4, 6], [5, 7]]
    for record, pixels in zip(annotations, (RED, blue), strict=True):
        assert np.array_equal(read_image(record.path).permute(1, 2, 0).numpy(), pixels)


def test_images_may_be_floats_tensors_and_pil_and_those_with_a_path_stay_in_place(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    images = [RED / 255, torch.from_numpy(RED).permute(2, 0, 1), Image.fromarray(RED), path, str(path)]
    annotations = written([(image, target()) for image in images], tmp_path / "data")
    for record in annotations:
        assert np.array_equal(read_image(record.path).permute(1, 2, 0).numpy(), RED)
    assert [annotations[3].path, annotations[4].path] == [path, path]
    assert len(list((tmp_path / "data").glob("*.bmp"))) == 3


class TorchData(Dataset[Any]):
    """As torchvision's detection tutorial has it: labels from 1, flags and areas of COCO."""

    classes = ("__background__", "cat", "dog")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> Any:
        image = torch.from_numpy(RED).permute(2, 0, 1)
        if place == 1:  # without objects, as torchvision wraps COCO
            return image, {"image_id": 7}
        about = {"iscrowd": torch.tensor([1, 0]), "area": torch.tensor([3.0, 5.0]), "image_id": 5}
        boxes = torch.tensor([[1.0, 1, 3, 4], [0, 0, 2, 2]], requires_grad=True)
        return image, {"boxes": boxes, "labels": torch.tensor([2, 1]), **about}


def test_a_torch_data_set_with_targets_of_torchvision(tmp_path: Path) -> None:
    annotations = written(TorchData(), tmp_path, names=None)
    assert annotations.class_names == ("cat", "dog")
    assert annotations.category_ids == (1, 2)
    assert annotations[0].labels.tolist() == [1, 0]
    assert annotations[0].is_crowd.tolist() == [True, False]
    assert annotations[0].areas.tolist() == [3, 5]
    assert len(annotations[1].labels) == 0


def test_boxes_that_say_that_they_are_xywh_are_converted(tmp_path: Path) -> None:
    boxes = BoundingBoxes(torch.tensor([[1.0, 1, 3, 2]]), format="XYWH", canvas_size=(4, 6))
    annotations = written([(RED, {"boxes": boxes, "labels": [0]})], tmp_path)
    assert annotations.boxes_xyxy.tolist() == [[1, 1, 4, 3]]


def test_labels_with_gaps_have_names_by_label(tmp_path: Path) -> None:
    annotations = written(
        [(RED, target([0, 0, 2, 2], [1, 1, 3, 3], labels=[9, 3]))], tmp_path, {9: "dog", 3: "cat"}
    )
    assert annotations.class_names == ("cat", "dog")
    assert annotations.category_ids == (3, 9)
    assert annotations.labels.tolist() == [1, 0]


@pytest.mark.filterwarnings("ignore:Passing a `Dict:Warning")
def test_supervision_data_sets_of_files_and_of_arrays(tmp_path: Path) -> None:
    sv = pytest.importorskip("supervision")
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    found = sv.Detections(xyxy=np.array([[1.0, 0, 3, 2]]), class_id=np.array([1]))
    of_files = sv.DetectionDataset(["cat", "dog"], [str(path)], {str(path): found})
    annotations = written(of_files, tmp_path / "data", names=None)
    assert annotations[0].path == path
    assert annotations.class_names == ("cat", "dog")
    assert annotations.labels.tolist() == [1]
    assert annotations.boxes_xyxy.tolist() == [[1, 0, 3, 2]]

    of_arrays = sv.DetectionDataset(["cat", "dog"], {str(path): RED[..., ::-1]}, {str(path): found})
    annotations = written(of_arrays, tmp_path / "data", names=None)
    assert annotations[0].path.parent == tmp_path / "data"
    assert np.array_equal(read_image(annotations[0].path).permute(1, 2, 0).numpy(), RED)  # they are BGR


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((RED, [{"bbox": [0, 0, 1, 1]}]), "its target is list, not a dict with boxes and labels"),
        (RED, "its target is NoneType, not a dict with boxes and labels"),
        ((RED, {"bbox": [[0, 0, 1, 1]], "labels": [0]}), 'its target has no "boxes", only bbox, labels'),
        ((RED, target([0, 0, 1, 1], labels=[0, 1])), "1 boxes, but 2 labels"),
        ((RED, target([0, 0, 1, 1], labels=[2])), "label 2 has no class name; labels with a name: 0, 1"),
        ((RED, target([0, 0, 1, 1], labels=[-1])), "label -1 has no class name; labels with a name: 0, 1"),
        ((RED, target([0, 0, 1, 1], labels=[0.5])), "labels have shape (1,) and dtype float64, not integers"),  # type: ignore[list-item]
        ((RED, target([0, 0, 1])), "boxes have shape (1, 3) and dtype"),
        ((RED, target([0, 0, 1, 1], [0])), "inhomogeneous"),
        ((RED, target([0, 0, 1, 1], iscrowd=[0, 1])), "1 boxes, but iscrowd has shape (2,)"),
        ((RED[:0], target()), "must have pixels; this one has shape (0, 6, 3)"),
        ((RED.astype(np.int32), target()), "must be uint8, or floats in [0, 1]"),
        ((None, target()), "NoneType is not an image"),
    ],
)
def test_items_that_cannot_be_used_are_named_by_their_place(item: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        written([(RED, target()), item, (RED, target()), item], tmp_path)
    text = str(caught.value)
    assert "2 items cannot be used" in text
    assert (
        f"item 1: {message}" in text
        or f"item 1: an image given as an array {message}" in text
        or (message == "inhomogeneous" and "item 1: setting an array element" in text)
    )
    assert "item 3: " in text
    assert "item 0" not in text
    assert 'fix: give a list, or a torch Dataset, of (image, {"boxes"' in text


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ([float("nan"), 0, 2, 2], "has non-finite coordinates"),
        ([0, float("inf"), 2, 2], "has non-finite coordinates"),
        ([3, 0, 1, 2], "is inverted: a maximum is below its minimum"),
        ([1, 0, 1, 2], "has no area"),
        ([0, 0, 60, 2], "extends beyond the image (width 6, height 4)"),
    ],
)
def test_broken_boxes_are_left_to_the_data_check_which_names_the_item(
    box: list[float], what: str, tmp_path: Path
) -> None:
    annotations = written([(RED, target()), (RED, target([0, 0, 2, 2], box))], tmp_path)
    [problem] = check(annotations).problems
    assert what in str(problem)
    assert "image 'item_1-" in str(problem)
    assert (problem.record, problem.box) == (1, 1)


def test_what_is_no_data_set_or_has_no_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"the data \(list\) is empty\n  fix: give a list, or"):
        written([], tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DatasetError, match="generator is not a data set"):
        write_items((item for item in [(RED, target())]), ["cat"], tmp_path)
    with pytest.raises(DatasetError, match="DataLoader is not a data set"):
        write_items(DataLoader(TorchData()), ["cat"], tmp_path)
    with pytest.raises(DatasetError, match=r"the data has no class names[\s\S]*names=\{1: \"cat\""):
        write_items([(RED, target())], None, tmp_path)
    with pytest.raises(DatasetError, match="class 'cat' appears twice"):
        write_items([(RED, target())], ["cat", "cat"], tmp_path)


def test_the_same_data_are_written_once_and_other_data_have_another_name(tmp_path: Path) -> None:
    data = [(RED, target([0, 0, 2, 2]))]
    first = write_items(data, ["cat"], tmp_path)
    [image] = tmp_path.glob("*.bmp")
    written_at = image.stat().st_mtime_ns
    assert write_items(data, ["cat"], tmp_path) == first
    assert image.stat().st_mtime_ns == written_at
    others = [
        write_items([(RED + 1, target([0, 0, 2, 2]))], ["cat"], tmp_path),
        write_items([(RED, target([0, 0, 2, 3]))], ["cat"], tmp_path),
        write_items([(RED, target([0, 0, 2, 2], iscrowd=[1]))], ["cat"], tmp_path),
        write_items(data, ["dog"], tmp_path),
        write_items(data, {5: "cat", 0: "dog"}, tmp_path),
    ]
    assert len({first, *others}) == 6
    assert content_name(first) == first.name
    assert content_name(tmp_path / "train.json") == ""


def test_every_item_is_shown_to_the_progress_bar(tmp_path: Path) -> None:
    seen = []

    def track(items: Any, total: int) -> Any:
        seen.append(total)
        return items

    write_items([(RED, target())] * 3, ["cat"], tmp_path, track)
    assert seen == [3]
