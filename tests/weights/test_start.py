"""Trainings that start from a detector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from PIL import Image

from fcos.config import TrainConfig, load_config
from fcos.errors import ConfigError, WeightsError
from fcos.model.build import build_model
from fcos.train.run import train
from fcos.weights.load import load_model
from fcos.weights.published.coco import coco_file
from fcos.weights.start import adopt_settings, find_start, load_start


def configured(pretrain: Path | str | bool, **settings: Any) -> TrainConfig:
    return load_config({"pretrain": str(pretrain) if isinstance(pretrain, Path) else pretrain, **settings})


def test_settings_of_the_detector_are_adopted_but_for_what_the_user_gave(
    vectors: Callable[[str], Path],
) -> None:
    config = configured(vectors("detectron2_r50") / "state_dict.pth", short_side=512, nms_iou=0.55)
    start = find_start(config)
    assert start is not None
    adopted, changes = adopt_settings(config, start)
    assert (adopted.short_side, adopted.nms_iou) == (512, 0.55)
    assert (adopted.rules, adopted.stride_in_1x1, adopted.fpn_channels) == ("detectron2", True, 32)
    assert adopted.score_threshold == config.score_threshold, "a training decides what it measures"
    assert 'rules "detectron2"' in changes
    assert not any(change.startswith(("short_side", "nms_iou", "model")) for change in changes)
    assert adopted.origin("rules").startswith("file ")


def test_adopting_settings_leaves_the_callers_config_as_it_was(small_model: Path) -> None:
    """So that a second training with it trains the same network."""
    config = configured(small_model)
    adopted, _ = adopt_settings(config, load_model(small_model))
    assert adopted.origin("head_channels") == f"file {small_model}"
    assert config.origin("head_channels").startswith(("default", "preset"))
    again, _ = adopt_settings(config, load_model(small_model))
    assert again.head_channels == adopted.head_channels == 16


def test_adopted_settings_that_contradict_given_ones_are_refused(vectors: Callable[[str], Path]) -> None:
    config = configured(vectors("detectron2_r50") / "state_dict.pth", view_size=700, short_side=None)
    adopt_settings(config, load_model(vectors("detectron2_r50") / "state_dict.pth"))
    config = configured(
        vectors("detectron2_r50") / "state_dict.pth", strides=[8, 16, 32], regress_ranges=[64, 128]
    )
    start = load_model(vectors("detectron2_r50") / "state_dict.pth")
    adopted, _ = adopt_settings(config, start)
    with pytest.raises(WeightsError, match="does not fit its model"):
        load_start(build_model(adopted, 5), [f"class {i}" for i in range(5)], start)
    config = configured(vectors("detectron2_r50") / "state_dict.pth", view_size=640, short_side=600)
    assert adopt_settings(config, start)[0].view_size == 640
    config = load_config({"pretrain": str(vectors("detectron2_r50") / "state_dict.pth"), "view_size": 801})
    adopted, _ = adopt_settings(config, start)
    broken = start.config.model_copy(update={"short_side": 900})
    with pytest.raises(ConfigError, match="short_side 900 is more than view_size 801"):
        adopt_settings(config, type(start)(start.model, broken, start.card, start.path))


def test_all_weights_but_those_of_unknown_classes_are_taken(vectors: Callable[[str], Path]) -> None:
    start = load_model(vectors("mmdet_r50_caffe") / "state_dict.pth")
    config, _ = adopt_settings(configured(vectors("mmdet_r50_caffe") / "state_dict.pth"), start)
    model = build_model(config, 3)
    fresh = model.head.logits.weight.detach().clone()
    assert load_start(model, ["new", "class4", "class0"], start) == ["class4", "class0"]
    theirs = start.model.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("head.logits"):
            assert torch.equal(value, theirs[key]), key
    weights = model.head.logits.weight
    assert torch.equal(weights[0], fresh[0])
    assert torch.equal(weights[1:], theirs["head.logits.weight"][[4, 0]])


def test_a_finer_level_leaves_the_predictions_of_the_others_as_they_were(model_file: Path) -> None:
    start = load_model(model_file)
    finer = {"strides": [4, 8, 16, 32, 64, 128], "regress_ranges": [32, 64, 128, 256, 512]}
    config, _ = adopt_settings(configured(model_file, **finer), start)
    model = build_model(config, 3).eval()
    assert load_start(model, start.card.class_names, start) == ["cat", "dog", "bird"]
    images, sizes = torch.randint(0, 256, (1, 3, 128, 160)).float(), torch.tensor([[128, 160]])
    num_finer = 32 * 40
    with torch.no_grad():
        theirs, ours = start.model(images, sizes), model(images, sizes)
    assert ours.logits.shape[1] == theirs.logits.shape[1] + num_finer
    torch.testing.assert_close(ours.logits[:, num_finer:], theirs.logits)
    torch.testing.assert_close(ours.distances[:, num_finer:], theirs.distances)
    assert model.head.scales[0] == start.model.head.scales[0]


def test_a_quality_branch_can_be_added_and_left_out(model_file: Path) -> None:
    start = load_model(model_file)
    assert start.model.head.quality is not None
    config, _ = adopt_settings(configured(model_file, quality="none"), start)
    without = build_model(config, 3)
    load_start(without, start.card.class_names, start)
    assert torch.equal(without.head.distances.weight, start.model.head.distances.weight)

    other = type(start)(without, config, start.card, start.path)
    config, _ = adopt_settings(configured(model_file, quality="iou"), other)
    model = build_model(config, 3)
    assert model.head.quality is not None
    fresh = model.head.quality.weight.detach().clone()
    load_start(model, start.card.class_names, other)
    assert torch.equal(model.head.quality.weight, fresh)
    assert torch.equal(model.head.distances.weight, start.model.head.distances.weight)


def test_files_of_backbones_are_no_start(tmp_path: Path, model_file: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet50.pth")
    assert find_start(configured(tmp_path / "resnet50.pth")) is None
    assert find_start(configured(True)) is None
    ours = find_start(configured(model_file))
    assert ours is not None
    assert ours.card.class_names == ("cat", "dog", "bird")


@pytest.mark.parametrize("name", ["torchvision_r50", "adelaidet_r50_1x", "mmdet_r50_caffe"])
def test_a_training_goes_on_from_a_published_file(
    vectors: Callable[[str], Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (256, 192), (90, 20, 20)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png 10 10 40 50 1\n")
    (tmp_path / "names.txt").write_text("background\nbox\n")
    settings = {
        "pretrain": str(vectors(name) / "state_dict.pth"),
        "list_train": "list.txt",
        "root_train": ".",
        "name_file": "names.txt",
        "run_folder": "run",
        "view_size": 256,
        "short_side": None,
        "device": "cpu",
        "num_workers": 0,
        "nbatch_train": 1,
        "epochs": 1,
        "warmup_iter": 0,
        "lr_base": 1e-9,
        "tensorboard": False,
    }
    (tmp_path / "train.json").write_text(json.dumps(settings))
    run = train(load_config(tmp_path / "train.json", [f"run_folder={tmp_path / 'run'}"]))
    said = capsys.readouterr().err
    assert "settings adopted from state_dict.pth: " in said
    assert "detector: weights of " in said
    trained, start = load_model(run.folder / "last.safetensors"), load_model(vectors(name) / "state_dict.pth")
    assert trained.card.class_names == ("box",)
    assert trained.config.rules == start.config.rules
    assert load_config(run.folder / "config.json").fpn_channels == 32
    for key, value in start.model.state_dict().items():
        if not key.startswith("head.logits"):
            ours = trained.model.state_dict()[key]
            torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-4, msg=key)

    train(load_config(tmp_path / "train.json", [f"run_folder={tmp_path / 'run'}", "load=true"]))
    said = capsys.readouterr().err
    assert "already finished" in said
    assert "detector: weights of" not in said, "the checkpoint has them"


# COCO weights ---------------------------------------------------------------------------------------------


def test_coco_starts_from_torchvisions_file_in_the_hubs_folder(
    vectors: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    source = (
        vectors("torchvision_r50") / "state_dict.pth"
    ).read_bytes()  # random weights, of torchvision's names
    (tmp_path / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth").write_bytes(source)
    start = find_start(configured("coco"))
    assert start is not None
    assert start.card.origin == "torchvision"
    assert start.path.parent == tmp_path / "checkpoints"


def test_coco_without_a_network_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, dst: str, hash_prefix: str | None, progress: bool) -> None:
        assert hash_prefix == "99b0c9b7", "checked by its hash"
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*no network") as caught:
        coco_file()
    path = tmp_path / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth"
    url = "https://download.pytorch.org/models/fcos_resnet50_fpn_coco-99b0c9b7.pth"
    assert caught.value.fix == f"download {url} on another machine, and save the file as {path}"
