"""Saved labels open in annotation tools: read by the importers of those tools, where they are installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fcos.predict.labels import save_labels

NAMES = ("drone", "cat", "traffic light")  # not those of VOC, which importers assume without a list
BOXES = {"a": [(0, [2.25, 4.5, 20.0, 16.0]), (2, [0.0, 0.0, 8.0, 12.0])], "b": [(2, [1.0, 3.0, 30.0, 20.0])]}
EXPECTED = {
    name: sorted((NAMES[label], box) for label, box in boxes) for name, boxes in (BOXES | {"c": []}).items()
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and their detections in each format: `labels_coco.json`, `labels_voc`, `labels_yolo`."""
    outcomes = []
    for name in EXPECTED:
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 24)).save(path)
        detections = [{"label": label, "box_xyxy": box} for label, box in BOXES.get(name, [])]
        outcomes.append({"path": str(path), "width": 40, "height": 24, "detections": detections})
    for format in ("coco", "voc", "yolo"):
        save_labels(NAMES, (1, 2, 3), outcomes, format, tmp_path)
    return tmp_path


def as_uploaded(folder: Path, format: str) -> Path:
    """As an archive for upload holds them: with images in place of links, COCO files in a folder."""
    if format != "coco":
        return Path(shutil.copytree(folder / f"labels_{format}", folder / "uploaded"))
    shutil.copytree(folder / "photos", folder / "uploaded" / "images" / "default")
    (folder / "uploaded" / "annotations").mkdir()
    file = folder / "uploaded" / "annotations" / "instances_default.json"
    shutil.copyfile(folder / "labels_coco.json", file)
    return folder / "uploaded"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("format", "importer"), [("coco", "coco"), ("voc", "voc"), ("yolo", "yolo")])
def test_datumaro_which_cvat_imports_with_reads_every_box(folder: Path, format: str, importer: str) -> None:
    datumaro = pytest.importorskip("datumaro", exc_type=ImportError)
    data = datumaro.Dataset.import_from(str(as_uploaded(folder, format)), importer)
    names = [label.name for label in data.categories()[datumaro.AnnotationType.label]]
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for item in data:
        boxes = []
        for annotation in item.annotations:
            x, y, width, height = annotation.get_bbox()
            boxes.append((names[annotation.label], pytest.approx([x, y, x + width, y + height], abs=1e-4)))
        found[item.id] = sorted(boxes, key=lambda box: box[0])
    assert found == EXPECTED


@pytest.mark.filterwarnings("ignore")
def test_the_converter_of_label_studio_reads_coco(folder: Path) -> None:
    coco = pytest.importorskip("label_studio_sdk.converter.imports.coco", exc_type=ImportError)
    out = folder / "tasks.json"
    coco.convert_coco_to_ls(
        str(folder / "labels_coco.json"),
        str(out),
        to_name="image",
        from_name="label",
        out_type="annotations",
        image_root_url="/photos",
    )
    found: dict[str, list[tuple[str, Any]]] = {}
    for task in json.loads(out.read_text()):
        [annotation] = task["annotations"]
        boxes = []
        for result in annotation["result"]:  # percent of the image
            value, (width, height) = result["value"], (result["original_width"], result["original_height"])
            x1, y1 = value["x"] * width / 100, value["y"] * height / 100
            x2, y2 = x1 + value["width"] * width / 100, y1 + value["height"] * height / 100
            boxes.append((value["rectanglelabels"][0], pytest.approx([x1, y1, x2, y2], abs=1e-3)))
        found[Path(task["data"]["image"]).stem] = sorted(boxes, key=lambda box: box[0])
    assert found == {name: boxes for name, boxes in EXPECTED.items() if name in found}
    assert {"a", "b"} <= set(found)


def test_coco_boxes_have_an_empty_segmentation_without_which_cvat_refuses_them(folder: Path) -> None:
    boxes = json.loads((folder / "labels_coco.json").read_text())["annotations"]
    assert [box["segmentation"] for box in boxes] == [[], [], []]


def test_voc_lists_the_classes_as_cvat_reads_them(folder: Path) -> None:
    lines = (folder / "labels_voc" / "labelmap.txt").read_text().splitlines()
    assert lines == [
        "# label:color_rgb:parts:actions",
        "background:0,0,0::",
        "drone:::",
        "cat:::",
        "traffic light:::",
    ]
