import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from fcos.cli import main

# The curves of the document that describes the seed, and what its README shows of them.
MAP_MEAN = "0.0938 0.1693 0.2172 0.2306 0.2406 0.2413 0.2667 0.2587 0.3238 0.328 0.3325 0.3338"
MAP_50 = "0.173 0.3071 0.3645 0.3802 0.3982 0.4032 0.4265 0.4241 0.4998 0.5053 0.5108 0.5126"
MAP_75 = "0.0921 0.1708 0.2242 0.2393 0.2537 0.2519 0.2828 0.2723 0.3409 0.3455 0.3502 0.3527"
PRINTED = """\
map_mean
[0.0938 0.1693 0.2172 0.2306 0.2406 0.2413 0.2667 0.2587 0.3238 0.328
 0.3325 0.3338]
map_50
[0.173  0.3071 0.3645 0.3802 0.3982 0.4032 0.4265 0.4241 0.4998 0.5053
 0.5108 0.5126]
map_75
[0.0921 0.1708 0.2242 0.2393 0.2537 0.2519 0.2828 0.2723 0.3409 0.3455
 0.3502 0.3527]
"""


def write_run(folder: Path, *curves: list[float]) -> Path:
    folder.mkdir()
    names = ("map_mean", "map_50", "map_75")
    with (folder / "metrics.jsonl").open("w") as file:
        for epoch, values in enumerate(zip(*curves, strict=True), start=1):
            entry = {
                "kind": "eval",
                "step": 10 * epoch,
                "epoch": epoch,
                **dict(zip(names, values, strict=True)),
            }
            file.write(json.dumps(entry) + "\n")
    return folder


def seed_run(folder: Path) -> Path:
    return write_run(folder, *([float(v) + 1e-6 for v in c.split()] for c in (MAP_MEAN, MAP_50, MAP_75)))


def test_arrays_are_printed_as_the_seed_prints_them(tmp_path: Path) -> None:
    output = tmp_path / "curves.png"
    result = CliRunner().invoke(
        main, ["analyze", str(seed_run(tmp_path / "run")), "--arrays", "-o", str(output)]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == PRINTED
    assert str(output) in result.stderr
    with Image.open(output) as image:
        assert image.format == "PNG"


def test_several_runs_are_printed_under_their_names(tmp_path: Path) -> None:
    runs = [str(seed_run(tmp_path / name)) for name in ("a", "b")]
    result = CliRunner().invoke(main, ["analyze", *runs, "--arrays", "-o", str(tmp_path / "c.png")])
    assert result.stdout == f"# a\n{PRINTED}# b\n{PRINTED}"


def test_long_runs_are_printed_whole_and_small_numbers_plainly(tmp_path: Path) -> None:
    values = [0.0001] + [0.5] * 1500
    run = write_run(tmp_path / "run", values, values, values)
    result = CliRunner().invoke(main, ["analyze", str(run), "--arrays", "-o", str(tmp_path / "c.png")])
    assert "..." not in result.stdout
    assert "e-" not in result.stdout
    assert result.stdout.count("0.0001") == 3


def test_a_run_that_was_not_evaluated_yet_has_empty_arrays(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], [], [])
    result = CliRunner().invoke(main, ["analyze", str(run), "--arrays", "-o", str(tmp_path / "c.png")])
    assert result.exit_code == 0, result.output
    assert result.stdout == "map_mean\n[]\nmap_50\n[]\nmap_75\n[]\n"


def test_a_folder_that_is_no_run_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["analyze", str(tmp_path)])
    assert result.exit_code == 2
    assert "the run has no metrics" in result.stderr
    assert "fix: give the folder of a run, for example runs/train" in result.stderr


def test_an_image_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, said in (
        ("file/curves.png", "cannot be written: "),
        ("curves.xyz", "cannot write curves as .xyz"),
        ("curves", "cannot write curves as a file without a suffix"),
    ):
        result = CliRunner().invoke(
            main, ["analyze", str(seed_run(tmp_path / f"run-{len(name)}")), "-o", str(tmp_path / name)]
        )
        assert result.exit_code == 2
        assert f"OutputError: {said}" in result.output
    assert not list(tmp_path.glob("*curves*"))


def test_names_of_runs_are_text_in_the_image(tmp_path: Path) -> None:
    runs = [str(seed_run(tmp_path / name)) for name in ("$x", "_hidden", "\x1b[2Jrun")]
    result = CliRunner().invoke(main, ["analyze", *runs, "--arrays", "-o", str(tmp_path / "c.svg")])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"# $x\n{PRINTED}")
    assert "# \\x1b[2Jrun\n" in result.stdout
    drawn = (tmp_path / "c.svg").read_text()
    for name in ("$x", "./_hidden", "\\x1b[2Jrun"):
        assert f"<!-- {name} -->" in drawn


def test_table_marks_the_best_epoch_and_curves_go_into_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", [0.1, 0.3, 0.2], [0.2, 0.5, 0.4], [0.05, 0.25, 0.15])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 20, "epoch": 2, "loss": 1.25, "lr": 0.01}\n')
    result = CliRunner().invoke(main, ["analyze", "run"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["epoch", "step", "AP", "AP50", "AP75", "loss"] in rows
    assert ["1", "10", "0.1000", "0.2000", "0.0500", "-"] in rows
    assert ["2", "20", "0.3000", "0.5000", "0.2500", "1.25", "best"] in rows
    assert ["3", "30", "0.2000", "0.4000", "0.1500", "1.25"] in rows
    assert "curves saved to run/curves.png" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert {path.name for path in run.iterdir()} == {"metrics.jsonl", "curves.png"}


def test_image_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], [], [])
    result = CliRunner().invoke(main, ["analyze", str(run), "-o", str(tmp_path / "curves.xyz")])
    assert result.exit_code == 2
    assert "cannot write curves as .xyz" in result.stderr
    assert result.stdout == ""
