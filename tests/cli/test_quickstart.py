from pathlib import Path

import pytest
from click.testing import CliRunner

from fcos.cli import main
from fcos.cli.quickstart import _proposed
from fcos.data.quickstart import QUICKSTART_SETTINGS
from fcos.errors import OutputError


def test_a_wrong_setting_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    result = CliRunner().invoke(main, ["quickstart", "--out", str(out), "epochs_=3"])
    assert result.exit_code == 2
    assert '"epochs_" is not a setting' in result.stderr
    assert not out.exists()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("mine")
    result = CliRunner().invoke(main, ["quickstart", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "not empty, and is not a quickstart data set" in result.stderr
    assert (tmp_path / "train.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_result_does_not_depend_on_what_is_fast_on_the_machine() -> None:
    assert QUICKSTART_SETTINGS["precision"] == "fp32"
    assert _proposed(Path("digits"), ()) == ["run_folder=digits/run"]
    assert _proposed(Path("digits"), ("run_folder=here",)) == []


def test_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise OutputError("cannot be written: Permission denied", where=str(path))

    monkeypatch.setattr("fcos.cli.quickstart.check_writable", refused)
    result = CliRunner().invoke(main, ["quickstart", "--out", str(tmp_path / "q"), "--data-only"])
    assert result.exit_code == 2
    assert "OutputError: cannot be written: Permission denied" in result.stderr
    assert not (tmp_path / "q").exists()
