from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fcos.errors import OutputError, WeightsError
from fcos.weights.archive import MAX_JSON_BYTES
from fcos.weights.model_file import (
    FORMAT_VERSION,
    ModelCard,
    is_model_file,
    load_tensors,
    read_model,
    save_model,
)

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
    with pytest.raises(WeightsError, match="this is a folder, not a file"):
        read_model(tmp_path)


def test_weights_of_another_program_have_no_card(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file(small_model().state_dict(), path, metadata=metadata)
        with pytest.raises(WeightsError, match="contains weights, but no card that says how to use them"):
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
    assert "unexpected: 2.weight" in message
    assert "0.weight has shape (4, 3, 1, 1), expected (4, 3, 3, 3)" in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_many_tensors_that_do_not_fit_are_counted(path: Path) -> None:
    with pytest.raises(WeightsError, match="and 7 more") as caught:
        load_tensors(small_model(), {f"other.{i}": torch.zeros(1) for i in range(10)}, path)
    assert str(caught.value).count("unexpected") + str(caught.value).count("missing") == 10


def card_with(**changes: object) -> str:
    return json.dumps({**asdict(CARD), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": "cat"}, "class_names 'cat': Input should be a valid array"),
        ({"class_names": [1, 2, 3]}, "class_names.0 1: Input should be a valid string; class_names.1 2: "),
        ({"class_names": None}, "class_names None: Input should be a valid array"),
        ({"class_names": ["", "a", "b"]}, "class_names.0 '': String should have at least 1 character"),
        ({"class_names": ["cat", "cat"]}, "class_names ['cat', 'cat']: Value error, contains the same entry"),
        ({"class_names": [], "category_ids": []}, "0 category_ids for 0 classes"),
        ({"category_ids": [1, 2]}, "2 category_ids for 3 classes"),
        ({"category_ids": [1, 2, 2]}, "category_ids [1, 2, 2]: Value error, contains the same entry twice"),
        ({"category_ids": [1, 2, True]}, "category_ids.2 True: Input should be a valid integer"),
        ({"category_ids": [1, 2, 2**63]}, "category_ids.2 9223372036854775808: Input should be less than"),
        ({"category_ids": {"a": 1}}, "category_ids {'a': 1}: Input should be a valid array"),
        ({"settings": ["model"]}, "settings ['model']: Input should be an object"),
        ({"threshold": float("nan")}, "threshold nan: Input should be a finite number"),
        ({"threshold": None}, "threshold None: Input should be a valid number"),
        ({"threshold": 7}, "threshold 7: Input should be less than or equal to 1"),
        ({"metrics": {"map": "high"}}, "metrics.map.float 'high': Input should be a valid number"),
        ({"metrics": {"map": float("inf")}}, "metrics.map.float inf: Input should be a finite number"),
        ({"metrics": 1}, "metrics 1: Input should be an object"),
        ({"versions": {"torch": 2}}, "versions.torch 2: Input should be a valid string"),
        ({"origin": None}, "origin None: Input should be a valid string"),
        ({"origin": "\x1b[2J"}, r"origin '\x1b[2J': Value error, contains control characters"),
        ({"settings": {"model": "\x1b[2J"}}, r"settings.model '\x1b[2J': Value error, contains control"),
        ({"metrics": {"\x1b[2J": 1}}, r"'\x1b[2J': Value error, contains control characters"),
        ({"color": "red"}, "color 'red': Unexpected keyword argument"),
        ({"format_version": None}, "it has no format_version"),
        ({"format_version": True}, "it has no format_version"),
    ],
)
def test_an_odd_card_is_refused_with_what_is_odd(path: Path, changes: dict[str, object], words: str) -> None:
    write_card(path, card_with(**changes))
    with pytest.raises(WeightsError, match=r"the card of model\.safetensors cannot be read") as caught:
        read_model(path)
    assert words in caught.value.what


def test_deep_and_huge_cards_are_refused(path: Path) -> None:
    for content, words in (("[" * 10**6, "nested too deeply"), (" " * (MAX_JSON_BYTES + 1), "MB of JSON")):
        write_card(path, content)
        with pytest.raises(WeightsError, match=words):
            read_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(path: Path, value: float) -> None:
    state = small_model().state_dict()
    state["0.weight"][1, 2, 0, 0] = value
    save_model(path, state, CARD)
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 of 7 tensors, such as 0\.weight"):
        read_model(path)


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(tmp_path / "file" / "model.safetensors", small_model().state_dict(), CARD)


def header(path: Path, entries: object, length: int | None = None, data: bytes = b"") -> None:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_hostile_headers_of_safetensors_are_refused(path: Path) -> None:
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    cases: list[tuple[object, int | None, bytes]] = [
        ({}, 2**63 - 1, b""),
        ({}, 2**40, b""),
        (b"no JSON", None, b""),
        (b"\xff\xfe{}", None, b""),
        (b"[" * 10**5, None, b""),
        ({"a": {**one, "data_offsets": [0, 4000]}}, None, bytes(4)),
        ({"a": {**one, "data_offsets": [4, 0]}}, None, bytes(4)),
        ({"a": one, "b": one}, None, bytes(4)),
        ({"a": {**one, "shape": [2**62, 4]}}, None, bytes(4)),
        ({"a": {**one, "shape": [-1]}}, None, bytes(4)),
        ({"a": {**one, "dtype": "O"}}, None, bytes(4)),
        ({"__metadata__": {"fcos": 1}, "a": one}, None, bytes(4)),
    ]
    for entries, length, data in cases:
        header(path, entries, length, data)
        assert not is_model_file(path)
        with pytest.raises(WeightsError, match="is not a model file, or is damaged"):
            read_model(path)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_model_file_can_be_read_by_whom_the_umask_allows(path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_model(path, small_model().state_dict(), CARD)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
