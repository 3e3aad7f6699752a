"""What stays in float32, and what becomes 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos import Detector
from fcos.export.calibration import Calibration, in_float32
from fcos.export.card import to_metadata
from fcos.export.formats import FORMATS, export_card
from fcos.export.quantize import search
from fcos.weights.load import load_model

NAMES = ["backbone.body.conv1/Conv", "backbone.body.layer1.0.conv1/Conv", "pyramid.lateral.0/Conv"]
HEAD = ["head.box_tower.0/Conv", "head.box_tower.0/Conv_2", "head.logits/Conv", "head.distances/Conv"]


def ap_of(losses: dict[str, float], whole: float) -> Callable[[frozenset[str]], float]:
    """AP where everything quantized costs `whole`, and each part in float32 gives its share back."""
    return lambda in_float32: 0.6 - whole + sum(losses.get(part, 0.0) for part in in_float32)


def test_everything_is_quantized_where_it_costs_little() -> None:
    found = search(0.6, ap_of({}, 0.009), 0.01)
    assert found.is_within
    assert found.chosen.in_float32 == ()
    assert len(found.trials) == 1


def test_the_cheapest_part_that_is_enough_stays_in_float32() -> None:
    found = search(0.6, ap_of({"stem": 0.03, "head": 0.04}, 0.035), 0.01)
    assert found.is_within
    assert [trial.in_float32 for trial in found.trials] == [(), ("sums",), ("outputs",), ("stem",)]
    assert found.chosen.ap == pytest.approx(0.595)


def test_the_most_sensitive_parts_stay_together_where_no_single_one_is_enough() -> None:
    found = search(0.6, ap_of({"outputs": 0.01, "pyramid": 0.03, "head": 0.02}, 0.055), 0.01)
    assert found.is_within
    assert found.chosen.in_float32 == ("pyramid", "head")
    assert len(found.trials) == 7


def test_a_network_that_loses_too_much_in_any_way_says_its_best() -> None:
    found = search(0.6, ap_of({"stem": 0.1}, 0.5), 0.01)
    assert not found.is_within
    assert found.chosen.ap == pytest.approx(0.2)
    assert found.chosen.in_float32 == ("stem",)


def test_the_stem_is_the_first_convolution_and_a_head_is_shared_by_its_levels() -> None:
    names = [*NAMES, *HEAD]
    assert in_float32(names, frozenset({"stem"})) == {NAMES[0]}
    assert in_float32(names, frozenset({"outputs"})) == set(HEAD[2:])
    assert in_float32(names, frozenset({"head", "pyramid"})) == {NAMES[2], *HEAD}
    assert in_float32(names, frozenset()) == set()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(4):
        coarse = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(coarse.repeat(10, axis=0).repeat(10, axis=1)).save(paths[-1])
    return paths


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_convolutions_become_integers_and_detections_stay_close(
    name: str, exported: dict[str, Path], small_model: Path, images: list[Path], tmp_path: Path
) -> None:
    loaded = load_model(small_model)
    calibration = Calibration(loaded.config, images)
    assert [inputs["images"].shape for inputs in calibration] == [(1, 3, 96, 128)] * 4
    format = FORMATS[name]  # type: ignore[index]
    assert format.quantize is not None
    model = opened(name, exported[name])
    num_convolutions = len(quantized_convolutions(name, format.quantize(model, calibration, frozenset())))
    integers = format.quantize(model, calibration, frozenset({"outputs"}))
    in_integers = quantized_convolutions(name, integers)
    assert len(in_integers) == num_convolutions - 9  # three outputs on three levels
    assert not [convolution for convolution in in_integers if convolution.startswith("head.logits")]

    path = tmp_path / f"int8{format.ENDING}"
    format.save(integers, to_metadata(export_card(loaded), loaded.config), path)
    before, after = Detector.load(exported[name]), Detector.load(path)
    for image in images:
        wanted, found = before.predict(image, 0.0), after.predict(image, 0.0)
        best = (found.boxes_xyxy[:, None] - wanted.boxes_xyxy[None]).abs().amax(dim=2).amin(dim=0)
        assert float(best.median()) < 3  # pixels
        assert float((found.scores[:20] - wanted.scores[:20]).abs().max()) < 0.1


def test_a_model_with_tiles_is_calibrated_on_tiles_and_whole_images(
    small_model: Path, images: list[Path]
) -> None:
    config = load_model(small_model).config.model_copy(update={"tile": 60})  # of 60 x 90: two tiles
    sizes = [inputs["original_sizes_hw"].tolist() for inputs in Calibration(config, images)]

    assert len(sizes) == 12  # of four images, all views
    assert sorted(sizes[:3]) == [[[60, 60]], [[60, 60]], [[60, 90]]]

    calibration = Calibration(config, images * 75)  # 300: one view each
    assert calibration.num_images == len(list(calibration)) == 300


def opened(name: str, path: Path) -> object:
    if name == "onnx":
        import onnx

        return onnx.load(path)
    import openvino

    return openvino.Core().read_model(path / "model.xml")


def quantized_convolutions(name: str, model: object) -> list[str]:
    """Names of the convolutions that read integers."""
    if name == "onnx":
        made_by = {output: node for node in model.graph.node for output in node.output}  # type: ignore[attr-defined]
        return [
            node.name
            for node in model.graph.node  # type: ignore[attr-defined]
            if node.op_type == "Conv" and made_by[node.input[0]].op_type == "DequantizeLinear"
        ]
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()  # type: ignore[attr-defined]
        if op.get_type_name() in ("Convolution", "GroupConvolution")
        and op.input_value(0).get_node().get_type_name() == "FakeQuantize"
    ]
