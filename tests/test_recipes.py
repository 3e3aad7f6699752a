"""What decides the papers' numbers, read from the files of `configs/` and from what they build."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fcos.config import TrainConfig, load_config
from fcos.model.build import build_assigner, build_loss, build_model, build_postprocess
from fcos.model.fcos import FCOS, HeadOutput
from fcos.train.optimizer import Schedule, build_optimizer
from fcos.train.run import train

CONFIGS = Path(__file__).parent.parent / "configs"
COCO_IMAGES = 118_287


def recipe(name: str) -> TrainConfig:
    return load_config(CONFIGS / f"{name}.json")


def schedule(config: TrainConfig) -> Schedule:
    total_steps = math.ceil(config.epochs * COCO_IMAGES / config.nbatch_train)
    return Schedule(config, total_steps)


@pytest.fixture(scope="module")
def r50() -> FCOS:
    torch.manual_seed(0)
    return build_model(recipe("coco_r50_1x"), 80)


@pytest.mark.parametrize(
    ("name", "epochs", "backbone", "quality", "scale_min"),
    [
        ("coco_r50_1x", 12, "resnet50", "centerness", 1.0),
        ("coco_r50_iou_1x", 12, "resnet50", "iou", 1.0),
        ("coco_r50_2x_ms", 24, "resnet50", "centerness", 0.8),
        ("coco_r101_2x_ms", 24, "resnet101", "centerness", 0.8),
    ],
)
def test_recipe_of_the_papers(name: str, epochs: int, backbone: str, quality: str, scale_min: float) -> None:
    config = recipe(name)

    assert (config.epochs, config.backbone, config.quality) == (epochs, backbone, quality)
    assert (config.short_side, config.view_size, config.img_scale_min) == (800, 1333, scale_min)
    assert (config.nbatch_train, config.lr_base, config.optimizer) == (16, 0.01, "sgd")
    assert (config.momentum, config.weight_decay, config.grad_clip) == (0.9, 1e-4, 0.0)
    assert (config.strides, config.regress_ranges) == ([8, 16, 32, 64, 128], [64, 128, 256, 512])
    assert (config.freeze_bn, config.freeze_stages, config.boxarea_th) == (True, 1, 0)
    assert (config.fpn_channels, config.head_channels, config.head_convs) == (256, 256, 4)
    assert config.augmentation is False
    assert config.horizontal_flip


@pytest.mark.parametrize(
    ("name", "falls"), [("coco_r50_1x", (60_000, 80_000)), ("coco_r50_2x_ms", (120_000, 160_000))]
)
def test_rate_falls_after_the_images_of_the_papers(name: str, falls: tuple[int, int]) -> None:
    rate = schedule(recipe(name)).factor
    first, second = falls

    # 12 epochs of train2017 are 88,716 steps of 16, the papers' 1x 90,000: a fiftieth either way.
    assert (rate(round(first * 0.98)), rate(round(first * 1.02))) == pytest.approx((1, 0.1))
    assert (rate(round(second * 0.97)), rate(round(second * 1.02))) == pytest.approx((0.1, 0.01))
    assert (rate(0), rate(249), rate(499)) == pytest.approx((1 / 500, 0.5, 1))


def test_rate_falls_after_as_many_images_with_half_the_batch() -> None:
    half = recipe("coco_r50_1x").model_copy(update={"nbatch_train": 8})

    assert schedule(half).factor(2 * 58_500) == 1
    assert schedule(half).factor(2 * 61_000) == pytest.approx(0.1)


@pytest.mark.parametrize("batch", [2, 8, 64])
def test_rate_is_in_proportion_to_the_batch(batch: int) -> None:
    config = load_config(CONFIGS / "coco_r50_1x.json", [f"nbatch_train={batch}", "device=cpu"])

    assert config.lr_base == pytest.approx(0.01 * batch / 16)
    assert build_optimizer(config, build_small(config)).param_groups[0]["lr"] == config.lr_base


def build_small(config: TrainConfig) -> FCOS:
    return build_model(config.model_copy(update={"backbone": "resnet18", "head_channels": 64}), 80)


def test_fresh_head_gives_the_prior_everywhere(r50: FCOS) -> None:
    output = r50.eval()(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), torch.tensor([[128, 128]]))

    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


def test_head_starts_as_in_the_papers(r50: FCOS) -> None:
    convolutions = [module for module in r50.head.modules() if isinstance(module, nn.Conv2d)]
    weights = torch.cat([conv.weight.flatten() for conv in convolutions])

    assert len(convolutions) == 2 * 4 + 3
    assert weights.std().item() == pytest.approx(0.01, rel=0.01)
    assert r50.head.scales.tolist() == [1.0] * 5
    norms = [module for module in r50.head.modules() if isinstance(module, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(32, 256)] * 8


def test_biases_and_norms_have_no_weight_decay(r50: FCOS) -> None:
    decayed, free = build_optimizer(recipe("coco_r50_1x"), r50).param_groups

    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0)
    assert (decayed["lr"], decayed["momentum"]) == (0.01, 0.9)
    in_free = {id(parameter) for parameter in free["params"]}
    for module in r50.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.GroupNorm):
            assert {id(own["weight"]), id(own["bias"])} <= in_free
        elif isinstance(module, nn.Conv2d) and own["weight"].requires_grad:
            assert id(own["weight"]) not in in_free


def test_stem_first_stage_and_batch_norm_are_frozen(r50: FCOS) -> None:
    trained = {name for name, parameter in r50.backbone.body.named_parameters() if parameter.requires_grad}

    assert not any(name.startswith(("conv1", "bn1", "layer1")) or ".bn" in name for name in trained)
    assert any(name.startswith("layer2") for name in trained)


def test_targets_losses_and_scores_follow_the_papers() -> None:
    config = recipe("coco_r50_1x")
    assigner, loss, postprocess = build_assigner(config), build_loss(config), build_postprocess(config)

    assert (tuple(assigner.regress_ranges), assigner.center_radius) == ((64, 128, 256, 512), 1.5)
    assert (loss.quality, loss.box, loss.alpha, loss.gamma) == ("centerness", "giou", 0.25, 2.0)
    assert (postprocess.score_threshold, postprocess.nms_iou) == (0.05, 0.6)
    assert (postprocess.candidates_per_level, postprocess.detections_per_image) == (1000, 100)
    assert build_loss(recipe("coco_r50_iou_1x")).quality == "iou"


@pytest.mark.parametrize(
    ("name", "divided_by"),
    [("coco_r50_1x", ("positives", "centerness", "positives")), ("coco_r50_iou_1x", ("positives",) * 3)],
)
def test_losses_are_divided_by_what_the_papers_divide_by(name: str, divided_by: tuple[str, ...]) -> None:
    config = recipe(name)
    model = build_small(config)
    grid = model.grid((64, 64))
    targets = build_assigner(config)(grid, [torch.tensor([[8.0, 8.0, 40.0, 48.0]])], [torch.tensor([3])])
    output = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    usual, loss = targets.normalizers(), build_loss(config)

    sums = {
        "positives": int((targets.labels == 3).sum()),
        "centerness": float(targets.centerness[targets.labels == 3].sum()),
    }
    assert usual.tolist() == pytest.approx([sums[what] for what in divided_by])
    wanted = loss(output, grid, targets, usual)
    for number, changed in enumerate(wanted):
        more = usual.clone()
        more[number] *= 4
        for name, part in loss(output, grid, targets, more).items():
            assert part.item() == pytest.approx(wanted[name].item() / (4 if name == changed else 1), rel=1e-5)


def test_scores_are_square_roots_of_class_times_centerness() -> None:
    output = HeadOutput(
        logits=torch.tensor([[[0.0, 1.0]]]), distances=torch.ones(1, 1, 4), quality=torch.tensor([[-1.0]])
    )

    scores = build_postprocess(recipe("coco_r50_1x")).scores(output)

    wanted = (torch.tensor([0.0, 1.0]).sigmoid() * torch.tensor(-1.0).sigmoid()).sqrt()
    torch.testing.assert_close(scores, wanted[None, None])


def test_real_time_recipe_has_three_levels() -> None:
    config = recipe("coco_rt_r50")
    model = build_model(config, 80)

    output = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96]]))

    assert (config.short_side, config.view_size) == (512, 736)
    assert output.logits.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 80)
    assert build_assigner(config).regress_ranges == (64, 128)


@pytest.mark.parametrize(
    ("name", "epochs", "falls"),
    [("coco_seed_1x", 12, [60_000, 80_000]), ("coco_seed_2x", 24, [120_000, 160_000])],
)
def test_recipe_of_the_seed(name: str, epochs: int, falls: list[float]) -> None:
    config = recipe(name)

    assert (config.model, config.view_size, config.short_side) == ("fcos_seed", 1025, None)
    assert (config.quality, config.epochs, config.lr_schedule) == ("none", epochs, falls)
    assert (config.nbatch_train, config.lr_base, config.grad_clip, config.boxarea_th) == (16, 0.01, 3, 32)
    assert (config.img_scale_min, config.warmup_iter) == (0.8, 500)


def test_recipe_of_the_seed_for_voc() -> None:
    config = recipe("voc_seed")

    assert (config.model, config.view_size, config.short_side) == ("fcos_seed", 641, None)
    assert (config.epochs, config.lr_schedule, config.classes) == (30, [16_000, 22_000], 20)
    assert (config.nbatch_train, config.lr_base, config.grad_clip, config.boxarea_th) == (28, 0.01, 3, 32)
    assert (config.img_scale_min, config.warmup_iter) == (0.6, 500)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_recipe_trains(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step of the recipe's own network and losses, on one small image."""
    Image.new("RGB", (64, 64), (90, 20, 20)).save(tmp_path / "a.png")
    num_classes = json.loads(file.read_text())["classes"]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40]}],
        "categories": [{"id": number, "name": str(number)} for number in range(1, num_classes + 1)],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = [f"root_train={tmp_path}", f"list_train={tmp_path / 'train.json'}", "root_eval=", "list_eval="]
    small = ["short_side=null", "view_size=64", "nbatch_train=1", "epochs=1", "device=cpu", "pretrain=false"]
    here = [f"run_folder={tmp_path / 'run'}", "num_workers=0", "tensorboard=false", "save=false"]
    words = [*data, "data_format=coco", "name_file=", *small, *here]

    assert train(load_config(file, words)).finished

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    [step] = [line for line in lines if line["kind"] == "train"]
    assert 0 < step["loss"] < 100
    config = load_config(file, words)
    assert f"learning rate {config.lr_base:g} ({config.origin('lr_base')})" in capsys.readouterr().err
