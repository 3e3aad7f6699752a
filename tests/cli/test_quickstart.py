from pathlib import Path

from click.testing import CliRunner

from fcos.cli import main


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
