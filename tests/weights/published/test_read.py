"""Weights of five code bases against what their own code computed: the vectors, small width."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fcos.errors import WeightsError
from fcos.model.build import build_postprocess
from fcos.weights.load import load_model
from fcos.weights.published.opening import open_state
from fcos.weights.published.read import read_published

if TYPE_CHECKING:
    from conftest import Case

VARIANTS = ["detections", "detections_lowthr", "detections_topk30", "detections_thresh_with_ctr"]


def test_the_network_input_is_theirs(case: Case) -> None:
    it = case
    assert read_published(it.folder / "state_dict.pth").card.origin == it.origin
    ours = it.model.normalize(it.batch.images, it.batch.sizes_hw).numpy()
    if it.rules == "torchvision":
        # They subtract the mean before they interpolate, we after it: float noise.
        np.testing.assert_allclose(ours, it.array("preprocessed.npy"), rtol=0, atol=1e-6)
    else:  # to the last bit; theirs is BGR, for which our first convolution is turned round
        np.testing.assert_array_equal(ours[:, ::-1], it.array("preprocessed.npy"))


@torch.inference_mode()
def test_features_and_head_are_theirs(case: Case) -> None:
    it = case
    images = it.model.normalize(it.batch.images, it.batch.sizes_hw)
    levels = it.model.pyramid(it.model.backbone(images))
    for ours, (_, theirs) in zip(levels, sorted(it.array("features.npz").items()), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-4)
    output = it.model.head(levels)
    strides = it.model.grid((160, 256)).strides[:, None]
    torch.testing.assert_close(output.logits[0], it.head("cls"), rtol=0, atol=1e-4)
    torch.testing.assert_close(output.quality[0], it.head("ctr")[:, 0], rtol=0, atol=1e-4)
    # distances: in units of the stride, as three of them have it (detectron2 applies the ReLU later)
    in_pixels = it.rules in ("mmdetection", "official")
    distances = it.head("reg") / strides if in_pixels else it.head("reg").relu()
    torch.testing.assert_close(output.distances[0] / strides, distances, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_detections_are_theirs_in_their_order(case: Case, variant: str) -> None:
    it = case
    file = it.folder / f"{variant}.json"
    if variant == "detections_thresh_with_ctr" and it.rules != "adelaidet":
        assert not file.exists()  # an option of AdelaiDet alone
        return
    theirs = json.loads(file.read_text())
    changes: dict[str, Any] = {}
    if "score_thresh" in theirs:
        changes["score_threshold"] = theirs["score_thresh"]
    if "topk" in theirs:
        changes["candidates_per_level"] = theirs["topk"]
    if theirs.get("thresh_with_ctr"):
        changes["threshold_on"] = "product"
    postprocess = build_postprocess(it.config.model_copy(update=changes))
    output = it.model(it.batch.images, it.batch.sizes_hw)
    grid = it.model.grid((160, 256))
    ours = postprocess(output, grid, it.batch.sizes_hw, it.batch.original_sizes_hw)[0]

    first_label = 1 if it.rules == "official" else 0
    assert (ours.labels + first_label).tolist() == theirs["labels"]
    torch.testing.assert_close(ours.scores, torch.tensor(theirs["scores"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.boxes_xyxy, torch.tensor(theirs["boxes"]), rtol=0, atol=0.01)


def test_torchvision_at_full_width_detects_what_its_own_package_does(shared: Path, tmp_path: Path) -> None:
    from torchvision.models.detection import fcos_resnet50_fpn

    from fcos import Detector
    from fcos.data.image import read_image

    torch.manual_seed(0)
    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None).eval()
    for name, buffer in theirs.named_buffers():  # random weights alone make features explode
        if name.endswith("running_var"):
            buffer.fill_(20.0)
    with torch.no_grad():
        head = theirs.head.classification_head
        torch.nn.init.normal_(head.cls_logits.weight, std=0.1)
        head.cls_logits.bias.fill_(-4.0)
        torch.nn.init.normal_(theirs.head.regression_head.bbox_reg.weight, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "fcos_resnet50_fpn_coco-99b0c9b7.pth")

    photo = next(iter(sorted((shared / "data").rglob("*.jpg"))))
    image = read_image(photo)[:, :150, :200]
    with torch.inference_mode():
        expected = theirs([image.float() / 255])[0]
    found = Detector.load(tmp_path / "fcos_resnet50_fpn_coco-99b0c9b7.pth", "cpu").predict(image, 0.0)
    assert len(expected["scores"]) == 100
    assert found.labels.tolist() == expected["labels"].tolist()
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes_xyxy, expected["boxes"], rtol=0, atol=0.01)


# Layouts --------------------------------------------------------------------------------------------------


def write_changed(
    vectors: Callable[[str], Path], out: Path, name: str, change: Callable[[dict[str, Any]], Any]
) -> Path:
    """The file of a folder with its tensors changed."""
    tensors: dict[str, Any] = dict(open_state(vectors(name) / "state_dict.pth").tensors)
    torch.save(change(tensors) or tensors, out)
    return out


def test_older_names_of_mmdetection_are_known(vectors: Callable[[str], Path], tmp_path: Path) -> None:
    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        return {key.replace("bbox_head.conv_", "bbox_head.fcos_"): value for key, value in tensors.items()}

    path = write_changed(vectors, tmp_path / "fcos_r50_caffe_old.pth", "mmdet_r50_caffe", rename)
    new = load_model(vectors("mmdet_r50_caffe") / "state_dict.pth")
    for key, value in load_model(path).model.state_dict().items():
        assert torch.equal(value, new.model.state_dict()[key]), key


def test_the_configuration_that_mmdetection_files_carry_is_read_and_not_run(
    vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    text = (
        "img_norm_cfg = dict(mean=[120.5, 110.25, 100], std=[60.0, 50.0, 40.0], to_rgb=True)\n"
        "model = dict(backbone=dict(style='pytorch'), bbox_head=dict(norm_on_bbox=True))\n"
        "test_cfg = dict(nms_pre=1000, nms=dict(type='nms', iou_threshold=0.55))"
    )
    source = torch.load(vectors("mmdet_r50_caffe") / "state_dict.pth", weights_only=True)
    source["meta"] = {"config": text, "CLASSES": tuple("abcde")}
    torch.save(source, tmp_path / "with.pth")
    file = read_published(tmp_path / "with.pth")
    wanted = {
        "stride_in_1x1": False,
        "normalize_targets": True,
        "box_activation": "relu",
        "quality_tower": "classification",
        "nms_iou": 0.55,
        "pixel_mean": [120.5, 110.25, 100.0],  # not those of ImageNet, which would be assumed otherwise
        "pixel_std": [60.0, 50.0, 40.0],
    }
    assert {key: file.card.settings[key] for key in wanted} == wanted
    assert file.card.class_names == tuple("abcde")
    stem = file._tensors["backbone.conv1.weight"]
    state = load_model(tmp_path / "with.pth").model.state_dict()
    assert torch.equal(state["backbone.body.conv1.weight"], stem), "to_rgb: no turning round"


def test_a_file_of_the_first_paper_is_known_by_the_name_its_authors_gave(
    vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    source = (vectors("official_r50_imprv") / "state_dict.pth").read_bytes()
    for name, activation in (("FCOS_R_50_FPN_1x.pth", "exp"), ("FCOS_imprv_R_50_FPN_1x.pth", "relu")):
        (tmp_path / name).write_bytes(source)
        assert read_published(tmp_path / name).card.settings["box_activation"] == activation


def test_a_model_without_p6_and_p7_is_adelaidets_for_small_images(
    vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    def cut(tensors: dict[str, Any]) -> dict[str, Any]:
        left_out = ("top_block", "scales.3", "scales.4")
        return {key: v for key, v in tensors.items() if not any(part in key for part in left_out)}

    config = load_model(write_changed(vectors, tmp_path / "rt.pth", "adelaidet_r50_1x", cut)).config
    assert (config.strides, config.short_side, config.view_size) == ([8, 16, 32], 512, 736)


def test_safetensors_of_another_code_base_open_too(vectors: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = open_state(vectors("detectron2_r50") / "state_dict.pth").tensors
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "d2.safetensors")
    assert load_model(tmp_path / "d2.safetensors").card.origin == "detectron2"


def test_names_of_coco_have_its_ids(vectors: Callable[[str], Path], tmp_path: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        tensors["head.cls_score.weight"] = torch.zeros(80, 32, 3, 3)
        tensors["head.cls_score.bias"] = torch.zeros(80)

    card = load_model(write_changed(vectors, tmp_path / "coco.pth", "detectron2_r50", widen)).card
    pairs = list(zip(card.class_names, card.category_ids, strict=True))
    assert (pairs[0], pairs[11], pairs[79]) == (("person", 1), ("stop sign", 13), ("toothbrush", 90))

    from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

    categories = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert [(categories[number], number) for _, number in pairs] == pairs
    card = load_model(vectors("torchvision_r50") / "state_dict.pth").card
    assert card.category_ids == tuple(range(91))
    assert [card.class_names[number] for _, number in pairs] == list(categories[n] for _, n in pairs)


# Refusals -------------------------------------------------------------------------------------------------


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_listed(
    vectors: Callable[[str], Path], tmp_path: Path, case: Case
) -> None:
    keys: list[str] = []

    def damage(tensors: dict[str, Any]) -> None:
        keys.extend(
            [next(k for k in tensors if ".1.conv2" in k), next(k for k in tensors if "3.0.conv1" in k)]
        )
        del tensors[keys[0]]
        tensors[keys[1]] = torch.zeros(2)
        tensors["backbone.something.else"] = torch.zeros(1)

    path = write_changed(vectors, tmp_path / "damaged_caffe.pth", case.folder.name, damage)
    with pytest.raises(WeightsError, match="does not fit its FCOS") as caught:
        load_model(path)
    message = str(caught.value)
    assert case.origin in message
    assert f"missing: {keys[0]}" in message
    assert f"{keys[1]} has shape (2,), expected" in message
    assert "unexpected: backbone.something.else" in message


def test_a_detector_without_quality_branch_is_refused_by_the_name_of_what_is_missing(
    vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    def retina(tensors: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in tensors.items() if "ctrness" not in key}

    path = write_changed(vectors, tmp_path / "retina.pth", "torchvision_r50", retina)
    with pytest.raises(WeightsError, match=r"missing: head\.regression_head\.bbox_ctrness\.weight"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "what", "files"),
    [
        ("res3.0.conv2_offset.weight", "deformable convolutions", "FCOS_imprv_dcnv2_"),
        ("base_layer.0.weight", "the backbone DLA", "DLA_34"),
        ("stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight", "the backbone VoVNet", "V_39"),
        ("features.0.0.weight", "the backbone MobileNetV2", "MNV2"),
    ],
)
def test_what_is_not_supported_is_named_with_the_files_that_have_it(
    key: str, what: str, files: str, vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors[f"backbone.bottom_up.{key}"] = torch.zeros(1)

    path = write_changed(vectors, tmp_path / "it.pth", "adelaidet_r50_1x", add)
    with pytest.raises(
        WeightsError, match=rf"it\.pth is a file of AdelaiDet with {what} \(.*{key}"
    ) as caught:
        load_model(path)
    assert files in caught.value.fix


@pytest.mark.parametrize("shape", [(), (0,), (4,), (0, 0, 1, 1)])
@pytest.mark.parametrize(
    "key",
    [
        "backbone.bottom_up.res2.0.conv2.weight",
        "backbone.bottom_up.stem.conv1.weight",
        "backbone.fpn_lateral5.weight",
        "proposal_generator.fcos_head.cls_logits.weight",
        "proposal_generator.fcos_head.bbox_tower.0.weight",
        "proposal_generator.fcos_head.scales.0.scale",
    ],
)
def test_impossible_shapes_are_refused(
    key: str, shape: tuple[int, ...], vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    if "scale" in key and shape == ():
        return  # that is how it has to be

    def damage(tensors: dict[str, Any]) -> None:
        assert key in tensors
        tensors[key] = torch.zeros(shape)

    with pytest.raises(WeightsError, match=r"odd\.pth"):
        load_model(write_changed(vectors, tmp_path / "odd.pth", "adelaidet_r50_1x", damage))


def test_a_file_of_no_known_code_base_is_refused_with_its_names(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.yolo.weight": torch.zeros(1)}}, tmp_path / "yolo.pth")
    with pytest.raises(WeightsError, match=r"not an FCOS detector of a known code base.*yolo\.weight"):
        load_model(tmp_path / "yolo.pth")


class HistoryBuffer:
    """As MMDetection's training files hold it."""


def test_a_pickle_that_wants_to_run_code_is_refused_with_what_it_wants(
    vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    tensors = open_state(vectors("mmdet_r50_caffe") / "state_dict.pth").tensors
    torch.save({"state_dict": tensors, "message_hub": {"loss": HistoryBuffer()}}, tmp_path / "epoch_12.pth")
    with pytest.raises(WeightsError, match=r"contains more than tensors, .*HistoryBuffer") as caught:
        load_model(tmp_path / "epoch_12.pth")
    assert "only tensors are loaded, never code" in caught.value.fix
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": HistoryBuffer()}, protocol=2))
    with pytest.raises(WeightsError, match=r"contains more than tensors, .*HistoryBuffer"):
        load_model(tmp_path / "model.pkl")


def test_a_checkpoint_to_resume_from_is_told_from_a_model_file(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match=r"last\.ckpt is a checkpoint for resuming a run") as caught:
        read_published(tmp_path / "last.ckpt")
    assert caught.value.fix == f"give the run folder, {tmp_path}, or last.safetensors in it"
