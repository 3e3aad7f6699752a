from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from fcos.config import TrainConfig, load_config
from fcos.config.conventions import CONVENTIONS
from fcos.data.annotations import Annotations, Record
from fcos.data.loader import (
    build_eval_loader,
    build_eval_transform,
    build_train_loader,
    build_train_transform,
)
from fcos.data.mixing import Mixing
from fcos.errors import ConfigError, WeightsError
from fcos.model.backbone import pixel_statistics
from fcos.model.build import build_assigner, build_fixed_assigner, build_loss, build_model, build_postprocess
from fcos.model.dynamic_assign import RULES, AtssAssigner
from fcos.model.losses import FcosLoss
from fcos.model.points import make_grid
from fcos.train.optimizer import build_optimizer
from fcos.weights.load import MODEL_SETTINGS, load_model, model_file_of, model_settings
from fcos.weights.model_file import ModelCard, read_model, save_model


def config(**settings: Any) -> TrainConfig:
    return load_config({"model": "fcos_lite0", "pretrain": False, "list_train": "none", **settings})


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    """Five gray images of different sizes with one box each."""
    records = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (60 + 10 * i, 40), (50 * i,) * 3).save(path)
        records.append(Record.make(path, [[5, 5, 30, 30]], [0], 100 + i))
    return Annotations.from_records(records, ["thing"], source=tmp_path, format="list")


# Model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["fcos_r18", "fcos_lite0", "fcos_mobilenetv2", "fcos_seed"])
def test_each_preset_builds_a_network_that_predicts(preset: str) -> None:
    backbone = {"backbone": "resnet18"} if preset == "fcos_seed" else {}  # its ResNet-50 is no faster
    settings = load_config({"model": preset, "pretrain": False, "list_train": "none", **backbone})
    model = build_model(settings, 7).eval()
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    num_points = len(model.grid((64, 64)).points)
    assert model.strides == tuple(settings.strides)
    assert output.logits.shape == (1, num_points, 7)
    assert output.distances.shape == (1, num_points, 4)
    assert (output.quality is None) == (settings.quality == "none")
    mean, std = pixel_statistics(settings.backbone)
    assert model.pixel_mean.flatten().tolist() == pytest.approx(mean)
    assert model.pixel_std.flatten().tolist() == pytest.approx(std)


def test_every_setting_of_the_model_reaches_it() -> None:
    settings = config(
        backbone="resnet18",
        freeze_bn=False,
        freeze_stages=2,
        fpn_channels=24,
        fpn_extra_from="c5",
        strides=[8, 16, 32, 64],
        regress_ranges=[32, 64, 128],
        head_channels=40,
        head_convs=3,
        head_conv="separable",
        head_norm="bn",
        quality_tower="classification",
        quality="centerness",
        box_activation="exp",
        normalize_targets=False,
        distance_init=2.0,
    )
    model = build_model(settings, 3)
    frozen = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1", "layer2"}
    assert model.pyramid.extra_from == "c5"
    assert [isinstance(conv, nn.Conv2d) for conv in model.pyramid.extra] == [True]
    assert model.pyramid.output[0].out_channels == 24
    kinds = ["Conv2d", "Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert [type(layer).__name__ for layer in model.head.box_tower] == kinds
    assert model.head.logits.in_channels == 40
    assert model.num_classes == 3
    assert (model.head.quality_tower, model.head.box_activation) == ("classification", "exp")
    assert model.head.units == [1.0] * 4
    assert model.head.distances.bias is not None
    assert model.head.distances.bias.exp().tolist() == pytest.approx([2.0] * 4)


def test_rules_and_losses_get_their_settings() -> None:
    settings = config(
        center_radius=2.5,
        quality="iou",
        box_loss="diou",
        focal_alpha=0.3,
        focal_gamma=1.5,
        score_threshold=0.2,
        nms_iou=0.7,
        candidates_per_level=50,
        detections_per_image=20,
        short_side=100,
        view_size=200,
    )
    assigner, loss, rules = build_assigner(settings), build_loss(settings), build_postprocess(settings)
    assert list(assigner.regress_ranges) == settings.regress_ranges
    assert assigner.center_radius == 2.5
    assert build_assigner(config(center_sampling=False)).center_radius is None
    assert (loss.quality, loss.box, loss.alpha, loss.gamma) == ("iou", "diou", 0.3, 1.5)
    assert (rules.score_threshold, rules.nms_iou) == (0.2, 0.7)
    assert (rules.candidates_per_level, rules.detections_per_image) == (50, 20)
    resized = build_eval_transform(settings)(torch.zeros(3, 50, 80, dtype=torch.uint8))
    assert resized.shape == (3, 100, 160)


@pytest.mark.parametrize("name", list(CONVENTIONS))
def test_assigner_loss_and_postprocess_follow_the_conventions(name: str) -> None:
    conventions = CONVENTIONS[name]
    settings = config(rules=name, normalize_targets=False, threshold_on="score", agnostic_nms=True)
    built = build_postprocess(settings)
    shared = ("score", "rank_by", "clip", "keep_empty", "inclusive_boxes", "point_order", "keep_ties")
    assert [getattr(built, key) for key in shared] == [getattr(conventions, key) for key in shared]
    assert (built.threshold_on, built.agnostic_nms) == ("score", True)
    loss = build_loss(settings)
    assert (loss.normalize_targets, loss.iou_plus_one) == (False, conventions.iou_plus_one)
    assigner = build_assigner(settings)
    assert (assigner.strict_ranges, assigner.areas) == (conventions.strict_ranges, conventions.areas)


@pytest.mark.parametrize("name", ["tal", "simota", "dsla"])
def test_an_assigner_by_predictions_chooses_from_the_points_inside_a_box(name: str) -> None:
    settings = config(assigner=name)
    assert build_assigner(settings).rule is RULES[name]
    possible = build_fixed_assigner(settings)
    grid = make_grid((256, 256), settings.strides)
    boxes = torch.tensor([[20.0, 20.0, 29.0, 29.0], [0.0, 0.0, 256.0, 256.0]])
    inside, in_range = possible.eligible(grid, boxes)
    assert inside.sum(dim=0).tolist() == [2, len(grid.points)]  # (28, 28) of P3, (24, 24) of P4
    assert in_range.all()


def test_atss_and_the_losses_of_soft_scores_are_settings() -> None:
    assigner = build_assigner(config(assigner="atss", quality="iou"))
    assert assigner == AtssAssigner(weight_boxes=False)
    loss = build_loss(config(class_loss="qfl", class_target="iou", box_loss_weight=2, focal_gamma=1.5))
    assert (loss.classes, loss.score_by_iou, loss.box_weight, loss.gamma) == ("qfl", True, 2, 1.5)
    assert build_loss(config()) == FcosLoss(quality="iou")


def test_boxes_are_weighted_by_centerness_where_the_network_learns_it() -> None:
    assert build_assigner(config(quality="centerness")).weight_boxes
    assert not build_assigner(config(quality="iou")).weight_boxes
    assert not build_assigner(config(quality="centerness", rules="detectron2")).weight_boxes


# Data -----------------------------------------------------------------------------------------------------


def test_evaluation_sees_every_image_once_over_all_devices(annotations: Annotations) -> None:
    settings = config(num_workers=0, short_side=40, view_size=100)
    ids: list[int] = []
    for rank in range(2):
        batches = list(build_eval_loader(settings, annotations, 4, rank=rank, world=2))
        assert all(len(batch) <= 4 for batch in batches)
        assert all(side % 32 == 0 for batch in batches for side in batch.images.shape[2:])
        ids += [image_id for batch in batches for image_id in batch.image_ids]
    assert sorted(ids) == [100, 101, 102, 103, 104]


def test_training_goes_on_in_the_stream_where_it_is_told_to(annotations: Annotations) -> None:
    settings = config(num_workers=0, nbatch_train=4, short_side=40, view_size=100)

    def read(start_step: int, num_batches: int) -> list[tuple[int, ...]]:
        loader = build_train_loader(
            settings, annotations, micro_batch=2, rank=0, world=1, start_step=start_step, total_steps=9
        )
        return [batch.positions for batch in islice(loader, num_batches)]

    assert read(0, 6) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    assert read(2, 2) == [(8, 9), (10, 11)]


def test_images_are_mixed_as_the_settings_say(annotations: Annotations) -> None:
    settings = config(nbatch_train=4, mosaic=0.5, mixup=0.1, copy_paste=0.2, mix_until=0.7, boxarea_th=9.0)
    loader = build_train_loader(
        settings, annotations, micro_batch=4, rank=0, world=1, start_step=0, total_steps=11
    )
    # 7 of the 11 steps are not past 0.7 of them
    assert loader.dataset.mixing == Mixing(0.5, 0.1, 0.2, until=7 * 4, min_area=9.0)  # type: ignore[attr-defined]


def test_training_leaves_out_boxes_that_are_too_small() -> None:
    transform = build_train_transform(
        config(boxarea_th=100.0, short_side=50, view_size=50, horizontal_flip=False)
    )
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 40.0, 40.0]])  # 25 and 400 after resizing
    assert transform(image, boxes, torch.tensor([0, 1]))[2].tolist() == [1]


# Optimizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_every_trained_parameter_is_optimized_once_and_only_weights_decay(name: str, kind: type) -> None:
    settings = config(optimizer=name, lr_base=0.02, lr_backbone=1, weight_decay=0.1, grad_clip=0.0)
    model = build_model(settings, 2)
    optimizer = build_optimizer(settings, model)
    assert type(optimizer) is kind
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(decayed + others) == sorted(trained)
    assert {"head.scales", "head.logits.bias", "head.box_tower.1.weight"} <= set(others)
    assert {"head.logits.weight", "pyramid.lateral.0.weight"} <= set(decayed)


def test_the_backbone_has_groups_of_its_own_where_its_rate_differs() -> None:
    settings = config(lr_base=0.02, lr_backbone=0.1, weight_decay=0.1)
    model = build_model(settings, 2)
    groups = build_optimizer(settings, model).param_groups
    assert [(group["weight_decay"], group["lr_factor"]) for group in groups] == [
        (0.1, 1.0), (0.0, 1.0), (0.1, 0.1), (0.0, 0.1)
    ]  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = [{names[id(p)].split(".")[0] for p in group["params"]} for group in groups]
    assert parts[0] | parts[1] == {"pyramid", "head"}
    assert parts[2] | parts[3] == {"backbone"}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)


# Model files ----------------------------------------------------------------------------------------------


def test_a_model_file_opens_without_any_config(model_file: Path) -> None:
    loaded = load_model(model_file)
    card, tensors = read_model(model_file)
    assert loaded.card == card
    assert loaded.path == model_file
    assert loaded.config.short_side == 96
    assert loaded.model.num_classes == len(card.class_names) == 3
    assert not loaded.model.training
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.model.state_dict().items())


def test_the_settings_of_a_model_file_are_settings() -> None:
    assert set(MODEL_SETTINGS) <= set(TrainConfig.model_fields)
    assert len(set(MODEL_SETTINGS)) == len(MODEL_SETTINGS)


def test_later_settings_are_only_in_the_files_that_need_them() -> None:
    plain = model_settings(load_config({"model": "fcos_r18"}))
    assert set(plain) == set(MODEL_SETTINGS) - {"tile", "horizontal_flip"}
    assert model_settings(load_config({"model": "fcos_r18", "tile": 640})) == plain | {"tile": 640}
    digits = model_settings(load_config({"model": "fcos_r18", "horizontal_flip": False}))
    assert digits == plain | {"horizontal_flip": False}


def test_a_run_folder_stands_for_its_best_model_else_its_last(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").touch()
    assert model_file_of(tmp_path).name == "last.safetensors"
    (tmp_path / "best.safetensors").touch()
    assert model_file_of(tmp_path).name == "best.safetensors"


def test_a_run_folder_without_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="contains no model") as caught:
        load_model(tmp_path)
    assert "finished an epoch" in caught.value.fix


def refused(settings: dict[str, object], path: Path) -> WeightsError:
    """The error for a file whose card has these settings."""
    save_model(path, {"a": torch.zeros(1)}, ModelCard({"backbone": "resnet18", **settings}, ("a",), (1,)))
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    return caught.value


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    error = refused({"head_shape": "round", "load": True}, tmp_path / "model.safetensors")
    assert error.what.endswith("that this version of fcos does not know: head_shape, load")
    assert error.fix == "pip install --upgrade fcos-torch"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strides": "many"}, '"strides": "many" is not a valid value; it takes a list of integers'),
        ({"view_size": None}, '"view_size": null is not a valid value; it takes an integer'),
        ({"pixel_mean": [float("nan"), 0, 0]}, '"pixel_mean": [NaN, 0, 0] is not a valid value'),
        ({"pixel_std": [1.0, 0.0, 1.0]}, "pixel_std [1.0, 0.0, 1.0] is not 3 numbers above 0"),
        ({"pixel_std": [1.0]}, "pixel_std [1.0] is not 3 numbers above 0"),
        ({"backbone_channels": [8, -8, 8, 8, 8]}, "is not 5 numbers above 0"),
        ({"backbone": {"a": 1}}, '"backbone": {"a": 1} is not a valid value'),
        ({"head_channels": 10**9}, '"head_channels": 1000000000 is more than 16384'),
        ({"head_convs": 10**9}, '"head_convs": 1000000000 is more than 64'),
        ({"fpn_channels": 10**30}, '"fpn_channels": 10000'),
        ({"view_size": 10**9}, '"view_size": 1000000000 is more than 32768'),
        ({"candidates_per_level": 2**70}, '"candidates_per_level": 1180591620717411303424 is more than'),
        ({"regress_ranges": []}, "regress_ranges has 0 entries for 5 strides"),
        ({"rules": "mine"}, '"rules": "mine" is not a valid value'),
        ({"head_norm": "gn" * 10**5}, '"head_norm":'),
    ],
)
def test_impossible_settings_of_a_model_file_are_named(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    error = refused(settings, tmp_path / "model.safetensors")
    assert error.what.startswith("model.safetensors has invalid settings: ")
    assert words in error.what
    assert len(error.what) < 500


def test_a_network_that_does_not_fit_its_file_is_refused_before_its_weights_are_made(tmp_path: Path) -> None:
    huge = {"backbone_channels": [10**6] * 5, "fpn_channels": 2**14, "head_channels": 2**14}
    error = refused(huge, tmp_path / "model.safetensors")  # of 200 TB
    assert "does not fit its model" in error.what
    error = refused({"backbone_channels": [10**12] * 5}, tmp_path / "model.safetensors")
    assert "Storage size calculation overflowed" in error.what


@pytest.mark.parametrize(
    "name", ["hf_hub:evil/x", "hf-hub:evil/x", "local-dir:/etc", "https://x.org/resnet18", "timm/resnet18"]
)
def test_a_model_file_names_only_networks_of_timm(name: str, tmp_path: Path) -> None:
    error = refused({"backbone": name}, tmp_path / "model.safetensors")
    assert error.what == f"{name} cannot be used as backbone: timm has no network of this name"
    with pytest.raises(ConfigError, match="timm has no network of this name"):
        build_model(config(backbone=name), 1)


def test_weights_that_do_not_fit_their_settings_are_refused(model_file: Path, tmp_path: Path) -> None:
    card, tensors = read_model(model_file)
    path = tmp_path / "model.safetensors"
    save_model(path, {key: value for key, value in tensors.items() if key != "head.scales"}, card)
    with pytest.raises(
        WeightsError, match=r"model\.safetensors does not fit its model:\n  missing: head\.scales"
    ):
        load_model(path)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_network_that_was_opened_without_gradients_can_be_trained(
    model_file: Path, context: Callable[[], AbstractContextManager[None]]
) -> None:
    with context():
        model = load_model(model_file).model
    model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([[32, 32]])).logits.sum().backward()
    assert model.head.logits.weight.grad is not None
