from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fcos.data.annotations import Annotations, Record
from fcos.errors import CheckpointError, OutputError
from fcos.train.checkpoint import check_same_settings, fingerprint, load_checkpoint, save_checkpoint


def annotations(folder: str = "a", boxes: list[list[float]] | None = None, label: int = 0) -> Annotations:
    records = [
        Record.make(Path(folder) / "1.jpg", boxes or [[1, 2, 3, 4]], [label], 1, size_hw=(9, 9)),
        Record.make(Path(folder) / "2.jpg", np.zeros((0, 4)), [], 2, size_hw=(9, 9)),
    ]
    return Annotations.from_records(records, ["cat", "dog"], source=Path(folder), format="list")


def test_content_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", {"step": 3, "weights": {"a": torch.arange(3.0)}})
    content = load_checkpoint(tmp_path / "last.ckpt")
    assert content["step"] == 3
    assert content["weights"]["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_cannot_be_pickled_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", {"step": 3})
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path / "last.ckpt", {"weights": torch.zeros(9), "step": lambda: 4})
    assert load_checkpoint(tmp_path / "last.ckpt") == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_full_disk_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device") as caught:
        save_checkpoint(tmp_path / "last.ckpt", {"weights": torch.zeros(3)})
    assert "free some disk space, or choose another run_folder" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(OutputError) as caught:
        save_checkpoint(tmp_path / "last.ckpt", {"weights": torch.zeros(3)})
    assert f"free some disk space, then: fcos train {tmp_path}/config.json load=true;" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read: the archive is damaged") as caught:
        load_checkpoint(tmp_path / "last.ckpt")
    assert "\n  fix: start a new run with load=false; best.safetensors of this run is" in str(caught.value)


def test_missing_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "last.ckpt")
    assert str(caught.value) == (
        f"there is nothing to resume from: no last.ckpt in {tmp_path}\n"
        "  in: setting 'load'\n"
        '  fix: set "load": false to start a new run, or run_folder to the folder of the run'
    )


def test_settings_of_a_run_stay_and_only_epochs_may_be_raised() -> None:
    path, old = Path("runs") / "a" / "last.ckpt", {"epochs": 4, "momentum": 0.9, "num_workers": 2}
    check_same_settings(old, dict(old), path)
    check_same_settings(old, {**old, "epochs": 5, "num_workers": 0, "new_setting": 1}, path)
    with pytest.raises(CheckpointError) as caught:
        check_same_settings(old, {**old, "momentum": 0.5}, path)
    resume = f"resume with the settings of the run: `fcos train {path.parent / 'config.json'} load=true`"
    assert str(caught.value) == (
        'the run has "momentum": 0.9, not 0.5\n'
        f"  in: {path}\n"
        f"  fix: {resume}; or set momentum back, or start a new run with load=false"
    )
    with pytest.raises(CheckpointError) as caught:
        check_same_settings(old, {**old, "epochs": 3, "momentum": 0.5}, path)
    assert 'the run has "epochs": 4, not 3; the run has "momentum": 0.9' in str(caught.value)
    assert "set epochs, momentum back" in str(caught.value)
    assert str(caught.value).endswith("load=false; epochs can only be raised")


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"step": Path("a")}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_fingerprint_follows_boxes_not_folders() -> None:
    assert fingerprint(annotations("a")) == fingerprint(annotations("b"))
    assert fingerprint(annotations(boxes=[[1, 2, 3, 5]])) != fingerprint(annotations())
    assert fingerprint(annotations(label=1)) != fingerprint(annotations())
    assert fingerprint(None) != fingerprint(annotations())
