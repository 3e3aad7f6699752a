from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fcos.data.annotations import Annotations, Record
from fcos.errors import OutputError, WeightsError
from fcos.train.checkpoint import fingerprint, load_checkpoint, save_checkpoint


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
    assert "make room on the disk, or choose another run_folder" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(OutputError) as caught:
        save_checkpoint(tmp_path / "last.ckpt", {"weights": torch.zeros(3)})
    assert f"make room on the disk, then: fcos train {tmp_path}/config.json load=true;" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(WeightsError, match=r"last\.ckpt cannot be read"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"step": Path("a")}, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match=r"last\.ckpt cannot be read"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_fingerprint_follows_boxes_not_folders() -> None:
    assert fingerprint(annotations("a")) == fingerprint(annotations("b"))
    assert fingerprint(annotations(boxes=[[1, 2, 3, 5]])) != fingerprint(annotations())
    assert fingerprint(annotations(label=1)) != fingerprint(annotations())
    assert fingerprint(None) != fingerprint(annotations())
