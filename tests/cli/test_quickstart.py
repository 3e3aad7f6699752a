from pathlib import Path

import pytest
from click.testing import CliRunner

from fcos import propose
from fcos.cli import main
from fcos.cli.quickstart import _proposed


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
    assert "not empty and not a quickstart data set" in result.stderr
    assert (tmp_path / "train.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_the_user_gives_goes_before_what_suits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = propose.Hardware(2, bf16_is_faster=True)
    monkeypatch.setattr(propose, "find_hardware", lambda: hardware)
    out = Path("digits")
    assert _proposed(out, ()) == ["run_folder=digits/run", "precision=bf16"]
    assert _proposed(out, ("precision=fp32", "seed=1")) == ["run_folder=digits/run"]
    assert _proposed(out, ("run_folder=here",)) == ["precision=bf16"]
