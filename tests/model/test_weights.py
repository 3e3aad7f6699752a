from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fcos.errors import WeightsError
from fcos.model.weights import FORMAT_VERSION, ModelCard, load_tensors, read_model, save_model

CARD = ModelCard(
    settings={"model": "fcos_r18", "short_side": 320, "strides": [8, 16, 32]},
    class_names=("cat", "pferd", "犬"),
    category_ids=(1, 18, 90),
    threshold=0.42,
    metrics={"map_mean": 0.5, "epoch": 3},
    versions={"torch": "2.6"},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def write_card(path: Path, content: str) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata={"fcos": content})


def test_a_model_file_comes_back_as_it_was_written(path: Path) -> None:
    model = small_model().to(memory_format=torch.channels_last)
    save_model(path, model.state_dict(), CARD)
    card, tensors = read_model(path)
    assert card == CARD
    assert list(tensors) == sorted(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(tensors[key], value)
        assert tensors[key].dtype == value.dtype


def test_nothing_but_the_file_is_left_in_the_folder(path: Path) -> None:
    save_model(path, small_model().state_dict(), CARD)
    save_model(path, small_model().state_dict(), replace(CARD, threshold=0.1))
    assert list(path.parent.iterdir()) == [path]
    assert read_model(path)[0].threshold == 0.1


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    save_model(path, small_model().state_dict(), CARD)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_model(path, small_model().state_dict(), replace(CARD, settings={"no": object()}))
    assert read_model(path)[0] == CARD
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no model file .*model\.safetensors"):
        read_model(path)


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_truncated_file_is_damaged(path: Path, length: int) -> None:
    save_model(path, small_model().state_dict(), CARD)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        WeightsError, match=r"model\.safetensors is not a model file, or is damaged"
    ) as caught:
        read_model(path)
    assert str(path) in caught.value.where
    assert "run folder" in caught.value.fix


def test_a_file_of_another_kind_is_no_model_file(path: Path) -> None:
    torch.save(small_model().state_dict(), path)
    with pytest.raises(WeightsError, match="is not a model file, or is damaged"):
        read_model(path)


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a model file, or is damaged"):
        read_model(tmp_path)


def test_weights_of_another_program_have_no_card(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file(small_model().state_dict(), path, metadata=metadata)
        with pytest.raises(WeightsError, match="holds weights, but no card that says how to use them"):
            read_model(path)


def test_a_file_of_a_newer_version_asks_for_an_upgrade(path: Path) -> None:
    write_card(path, json.dumps({"format_version": FORMAT_VERSION + 1, "something": "new"}))
    with pytest.raises(
        WeightsError, match=r"model\.safetensors was written by a newer version of fcos"
    ) as caught:
        read_model(path)
    assert caught.value.fix == "pip install --upgrade fcos-torch"


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format_version": 1, "class_names": []}', '{"format_version": "x"}']
)
def test_a_card_that_cannot_be_read_is_refused(path: Path, content: str) -> None:
    write_card(path, content)
    with pytest.raises(WeightsError, match=r"the card of model\.safetensors cannot be read"):
        read_model(path)


def test_tensors_go_into_the_model(path: Path) -> None:
    source, target = small_model(), small_model()
    load_tensors(target, source.state_dict(), path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(target.state_dict().values(), source.state_dict().values(), strict=True)
    )


def test_every_tensor_that_does_not_fit_is_named(path: Path) -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = dict(model.state_dict())
    del tensors["0.bias"]
    tensors["2.weight"] = torch.zeros(1)
    tensors["0.weight"] = torch.zeros(4, 3, 1, 1)
    with pytest.raises(WeightsError, match=r"model\.safetensors does not fit its model") as caught:
        load_tensors(model, tensors, path)
    message = str(caught.value)
    assert "missing: 0.bias" in message
    assert "left over: 2.weight" in message
    assert "0.weight has shape (4, 3, 1, 1), wanted (4, 3, 3, 3)" in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_many_tensors_that_do_not_fit_are_counted(path: Path) -> None:
    with pytest.raises(WeightsError, match="and 7 more") as caught:
        load_tensors(small_model(), {f"other.{i}": torch.zeros(1) for i in range(10)}, path)
    assert str(caught.value).count("left over") + str(caught.value).count("missing") == 10
