"""The detector that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcos import Detector
from fcos.config import load_config
from fcos.errors import WeightsError
from fcos.model.build import build_model
from fcos.weights.load import EVERYDAY_FILE, is_model, load_model
from fcos.weights.model_file import read_model
from fcos.weights.published.coco import COCO_IDS, COCO_NAMES
from fcos.weights.start import adopt_settings, find_start, load_start


def test_it_is_small_and_in_half_precision() -> None:
    assert EVERYDAY_FILE.stat().st_size < 8e6
    card, tensors = read_model(EVERYDAY_FILE)
    floats = {key: value.dtype for key, value in tensors.items() if value.is_floating_point()}
    assert {key for key, dtype in floats.items() if dtype != torch.float16} == {"pixel_mean", "pixel_std"}
    assert len(card.class_names) == 20
    assert set(zip(card.class_names, card.category_ids, strict=True)) < set(
        zip(COCO_NAMES, COCO_IDS, strict=True)
    )
    assert card.metrics["map_50"] > 0.3


def test_it_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    detector = Detector.load("everyday", "cpu")
    assert detector.path == EVERYDAY_FILE
    assert detector.model.head.logits.weight.dtype == torch.float32
    (tmp_path / "everyday").mkdir()  # the user's own folder comes first
    with pytest.raises(WeightsError, match="everyday contains no model"):
        Detector.load("everyday", "cpu")


def test_a_training_starts_from_it_and_takes_the_outputs_of_classes_that_it_knows() -> None:
    config = load_config({"model": "fcos_mobilenetv2", "pretrain": "everyday"})
    assert config.pretrain == "everyday", "a name, not a path"
    start = find_start(config)
    assert start is not None
    config, _ = adopt_settings(config, start)
    assert (config.short_side, config.view_size) == (start.config.short_side, start.config.view_size)
    model = build_model(config, 3)
    fresh = model.head.logits.weight.detach().clone()
    assert load_start(model, ["fox", "dog", "couch"], start) == ["dog", "couch"]
    theirs = start.model.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("head.logits"):
            assert torch.equal(value, theirs[key]), key
    rows = [start.card.class_names.index(name) for name in ("dog", "couch")]
    weights = model.head.logits.weight
    assert torch.equal(weights[0], fresh[0])
    assert torch.equal(weights[1:], theirs["head.logits.weight"][rows])


def test_imagenet_is_a_name_of_the_backbones_own_weights() -> None:
    config = load_config({"model": "fcos_lite0", "pretrain": "imagenet"})
    assert config.pretrain == "imagenet"
    assert find_start(config) is None


def test_models_are_known_by_their_looks(tmp_path: Path, small_model: Path) -> None:
    assert is_model(str(small_model))
    assert is_model("everyday")
    assert is_model("missing.pth")
    assert is_model("model.onnx")
    (tmp_path / "run").mkdir()
    assert not is_model(str(tmp_path / "run"))
    (tmp_path / "run" / "config.json").write_text('{"architectures": ["Net"]}')
    assert not is_model(str(tmp_path / "run")), "of another program"
    (tmp_path / "run" / "config.json").write_text('{"list_train": "train.json"}')
    assert is_model(str(tmp_path / "run")), "a run that has not finished an epoch"
    assert not is_model("photo.jpg")
    assert load_model(str(EVERYDAY_FILE)).card.class_names[0] == load_model("everyday").card.class_names[0]
