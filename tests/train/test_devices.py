from __future__ import annotations

import pytest
import torch

from fcos.errors import DeviceError
from fcos.predict.device import available_devices, choose_device, torch_device
from fcos.train import devices
from fcos.train.devices import build_fabric, slow_precision


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing but a CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Tesla {number}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert choose_device("auto") == ("cpu", 1)
    assert available_devices() == "cpu"
    assert torch_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_every_gpu() -> None:
    assert choose_device("auto") == ("cuda", 2)
    assert choose_device([1]) == ("cuda", [1])
    assert torch_device([1]) == torch.device("cuda", 1)


@pytest.mark.usefixtures("two_gpus")
def test_gpu_that_is_not_there_is_an_error_that_says_what_is() -> None:
    with pytest.raises(DeviceError, match=r"there is no GPU 2, 5 on this machine") as caught:
        choose_device([0, 2, 5])
    assert 'in: "device": [0, 2, 5]' in str(caught.value)
    assert "available: GPU 0: Tesla 0, GPU 1: Tesla 1, cpu" in str(caught.value)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_kind_of_device_that_is_not_there_is_an_error(device: str) -> None:
    with pytest.raises(DeviceError, match=f"there is no {device} device on this machine") as caught:
        choose_device(device)
    assert 'set "device" to "auto" or "cpu"' in str(caught.value)


def test_processes_are_those_of_the_cpu() -> None:
    assert build_fabric("cpu", 2).world_size == 2
    assert build_fabric("cpu").device == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_processes_that_a_launcher_started_need_as_many_devices() -> None:
    of_launch = devices._devices_of_launch
    assert of_launch(2, "cuda", [0, 1], 1) == [0, 1]
    assert of_launch(2, "cuda", 2, 1) == 2
    assert of_launch(2, "cpu", 1, 1) == of_launch(2, "cpu", 1, 2) == 2
    for arguments, words in (
        ((2, "cuda", [1], 1), '2 processes were started on this machine, but "device" names 1 GPU'),
        ((3, "cuda", 3, 1), "3 processes were started on this machine, but each process sees 2 GPUs"),
        ((2, "cpu", 1, 3), '2 processes were started on this machine, but "num_processes" is 3'),
    ):
        with pytest.raises(DeviceError, match=words):
            of_launch(*arguments)  # type: ignore[arg-type]


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(DeviceError, match="fp16 needs a GPU") as caught:
        build_fabric("cpu", 1, "fp16")
    assert 'set "precision" to "bf16"' in str(caught.value)


def test_slow_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bf16_time", lambda: 6.04)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    said = slow_precision("bf16", "cpu")
    assert said is not None
    assert "a convolution takes 6.0 times as long as with precision=fp32" in said
    assert slow_precision("fp32", "cpu") is None
    assert "precision=fp16 is fast" in str(slow_precision("bf16", "cuda"))
    assert slow_precision("fp16", "cuda") is None


def test_fast_numbers_need_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bf16_time", lambda: 0.7)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert slow_precision("bf16", "cpu") is None
    assert slow_precision("bf16", "cuda") is None


def test_bf16_is_measured_without_a_random_number() -> None:
    before = torch.get_rng_state()
    assert 0.1 < devices.bf16_time.__wrapped__() < 1000
    assert torch.equal(torch.get_rng_state(), before)
