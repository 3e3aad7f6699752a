"""Which tensors of a weight file are taken, and that none of them runs code."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcos.errors import WeightsError
from fcos.weights.published.opening import ONLY_ARRAYS, ONLY_TENSORS, open_state

from ... import processes


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def weights(value: float) -> dict[str, Tensor]:
    return {"conv.weight": torch.full((2, 3), value), "conv.bias": torch.full((2,), value)}


def with_prefix(prefix: str, value: float) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in weights(value).items()}


def opened(content: object, tmp_path: Path) -> Any:
    torch.save(content, tmp_path / "it.pth")
    return open_state(tmp_path / "it.pth")


@pytest.mark.parametrize(
    "content",
    [
        weights(7),
        {"state_dict": weights(7), "epoch": 3},
        {"model": weights(7), "optimizer": {"state": {0: {"momentum": torch.zeros(1)}}}},
        {"model": weights(1), "model_ema": weights(7)},
        {"state_dict": weights(1), "state_dict_ema": with_prefix("module.", 7)},
        {"model": weights(1), "ema": weights(7)},
        {"ema": {"module": weights(7), "updates": 100}, "model": weights(1)},
        {"model_ema": {"n_averaged": torch.tensor(5), **with_prefix("module.", 7)}, "model": weights(1)},
        {"n_averaged": torch.tensor(5), **with_prefix("module.", 7)},
        with_prefix("_orig_mod.module.", 7),
        with_prefix("module._orig_mod.", 7),
        {"state_dict": with_prefix("model._orig_mod.", 7)},
        {"state_dict": weights(7), "ema_state_dict": {"steps": torch.tensor(9), **with_prefix("module.", 1)}},
        {"state_dict": {**weights(7), "ema_conv_weight": torch.ones(2, 3)}},
    ],
)
def test_the_weights_are_found_and_averaged_ones_preferred(content: object, tmp_path: Path) -> None:
    file = opened(content, tmp_path)
    assert set(file.tensors) == {"conv.weight", "conv.bias"}
    assert all((tensor == 7).all() for tensor in file.tensors.values())


def test_that_averaged_weights_were_taken_is_said(tmp_path: Path) -> None:
    assert opened({"model": weights(1), "model_ema": weights(7)}, tmp_path).notes == (
        'used the averaged weights ("model_ema"), not those in "model"',
    )
    assert opened({"model": weights(1), "epoch": 2}, tmp_path).notes == ()


def test_weights_of_nan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"contains NaN or infinity in 2 of 2 tensors, such as conv\.weight"
    ):
        opened(weights(float("nan")), tmp_path)


def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path) -> None:
    for strange in (
        torch.zeros(1).expand(10**6, 10**6),  # 4 bytes that stand for 4 TB
        torch.zeros(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3).to(torch.float8_e4m3fn),
    ):
        with pytest.raises(WeightsError, match=r"not plain numbers, such as conv\.weight"):
            opened({**weights(7), "conv.weight": strange}, tmp_path)


# Pickles of numpy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_of_numpy_are_refused_with_a_command_that_converts_them(
    protocol: int, tmp_path: Path
) -> None:
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
    with pytest.raises(WeightsError, match=r"in\.pkl cannot be read as a weight file") as caught:
        open_state(tmp_path / "in.pkl")
    assert ONLY_ARRAYS in caught.value.fix
    command = ONLY_ARRAYS.partition('python -c "')[2].removesuffix('"')
    processes.run("-c", command, cwd=tmp_path, check=True)
    assert torch.equal(open_state(tmp_path / "out.pth").tensors["a.weight"], torch.tensor(arrays["a.weight"]))


def test_pickles_run_no_code(tmp_path: Path) -> None:
    mark, path = tmp_path / "PWNED", tmp_path / "model.pkl"
    for content, words in (
        ({"model": Evil(mark)}, r"contains more than tensors, \w+\.mkdir"),
        ({"model": {"a": np.array([Evil(mark)], dtype=object)}}, "contains more than tensors, "),
        ([1, 2], "cannot be read as a weight file"),
    ):
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(WeightsError, match=words):
            open_state(path)
        assert not mark.exists()
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # the dict is to be number 2**31 - 1
    with pytest.raises(WeightsError, match="cannot be read as a weight file"):
        open_state(path)


# Hostile files of torch -----------------------------------------------------------------------------------


def test_no_file_of_torch_runs_code(tmp_path: Path) -> None:
    mark, path = tmp_path / "PWNED", tmp_path / "it.pth"
    for new_layout in (True, False):
        torch.save({"a": torch.zeros(1), "b": Evil(mark)}, path, _use_new_zipfile_serialization=new_layout)
        with pytest.raises(WeightsError, match="cannot be read as a weight file"):
            open_state(path)
        assert not mark.exists()


def test_old_archives_and_programs_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "it.pth"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("../../outside")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    with pytest.raises(WeightsError, match="it is an old torch archive"):
        open_state(path)
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save writes it
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"it/{name}", b"")
    with pytest.raises(WeightsError, match="it is a TorchScript program"):
        open_state(path)


def test_archives_that_unpack_to_more_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**8))
    with pytest.raises(WeightsError, match="the archive is compressed"):
        open_state(path)


def test_a_pipe_a_folder_and_nothing_are_no_weight_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for name, words in (
        ("pipe.pth", "this is a pipe"),
        ("none.pth", "there is no weight file"),
        ("", "folder"),
    ):
        with pytest.raises(WeightsError, match=words):
            open_state(tmp_path / name)


def test_the_advice_for_files_of_objects_works_and_keeps_the_configuration(tmp_path: Path) -> None:
    """As one types it, in a folder with the library that the file was written with."""
    (tmp_path / "library.py").write_text(
        'class Config:\n    pretty_text = "img_norm_cfg = dict(mean=[1, 2, 3], to_rgb=True)"\n'
        "class History:\n    pass\n"
    )
    write = (
        "import torch, library; torch.save({'state_dict': {'a': torch.ones(2)}, 'message_hub': "
        "library.History(), 'meta': {'cfg': library.Config(), 'CLASSES': ('cat',)}}, 'in.pth')"
    )
    processes.run("-c", write, cwd=tmp_path, check=True)
    with pytest.raises(WeightsError, match=r"contains more than tensors, library\.History") as caught:
        open_state(tmp_path / "in.pth")
    assert ONLY_TENSORS in caught.value.fix
    command = ONLY_TENSORS.partition('python -c "')[2].removesuffix('"')
    processes.run("-c", command, cwd=tmp_path, check=True)
    file = open_state(tmp_path / "out.pth")
    assert file.tensors["a"].tolist() == [1, 1]
    assert file.about["meta"] == {
        "CLASSES": ("cat",),
        "cfg": "img_norm_cfg = dict(mean=[1, 2, 3], to_rgb=True)",
    }
