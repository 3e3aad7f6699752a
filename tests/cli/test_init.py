import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fcos.cli import main
from fcos.config import load_config
from fcos.config.checks import check_paths
from fcos.data.formats import read_annotations
from fcos.train.run import Run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `birds` with a list of ten images, in the working directory."""
    monkeypatch.chdir(tmp_path)
    birds = tmp_path / "birds"
    birds.mkdir()
    for index in range(10):
        Image.new("RGB", (64, 48)).save(birds / f"{index}.jpg")
    (birds / "all.txt").write_text("".join(f"{index}.jpg 5 5 40 40 1\n" for index in range(10)))
    return birds


def fcos(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_init_writes_a_config_that_loads_and_whose_data_is_there(folder: Path) -> None:
    answer = fcos("init", "birds")
    assert answer.exit_code == 0, answer.output
    config = load_config(Path("train.json"))
    check_paths(config)
    trained = read_annotations(Path(config.list_train), root=Path(config.root_train))
    evaluated = read_annotations(Path(config.list_eval), root=Path(config.root_eval))
    assert (len(trained), len(evaluated)) == (8, 2)
    assert config.run_folder == str(folder.parent / "runs" / "birds")


def test_init_prints_every_choice_with_its_reason(folder: Path) -> None:
    answer = fcos("init", "birds", "-o", "birds.json")
    for key in json.loads(Path("birds.json").read_text()):
        assert f"\n {key} " in answer.output
    assert "the folder has no splits, so it was split: 8 images" in answer.output
    assert "written to birds.json\nstart training with `fcos train birds.json`" in answer.output


def test_config_file_and_data_can_move_together(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcos("init", "birds")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(folder.parent, elsewhere)
    monkeypatch.chdir(elsewhere)
    check_paths(load_config(elsewhere / "train.json"))
    assert json.loads((elsewhere / "train.json").read_text())["root_train"] == "birds"


def test_init_refuses_to_replace_another_config(folder: Path) -> None:
    Path("train.json").write_text('{"epochs": 1}')
    answer = fcos("init", "birds")
    assert answer.exit_code == 2
    assert answer.stderr == (
        "ConfigError: the config file already exists and differs from the proposal\n"
        "  in: file train.json\n"
        "  fix: train with it: `fcos train train.json`; or write another: `fcos init birds -o OTHER.json`; "
        "or replace it: `fcos init birds --force`\n"
    )
    assert Path("train.json").read_text() == '{"epochs": 1}'
    assert not Path("train_split").exists()
    assert fcos("init", "birds", "--force").exit_code == 0
    assert load_config(Path("train.json")).epochs > 1


@pytest.mark.parametrize("words", [("init",), ("init", "--force"), ("train",)])
def test_annotations_called_train_json_are_never_replaced(folder: Path, words: tuple[str, ...]) -> None:
    content = {"images": [], "annotations": [], "categories": []}
    Path("train.json").write_text(json.dumps(content))

    answer = fcos(*words, "birds")

    assert answer.exit_code != 0
    assert "would replace annotations of the same name" in answer.output
    assert json.loads(Path("train.json").read_text()) == content


def test_a_split_of_the_users_own_is_not_replaced(folder: Path) -> None:
    mine = Path("train_split/eval.json")
    mine.parent.mkdir()
    mine.write_text("[1]")

    answer = fcos("init", "birds")

    assert answer.exit_code == 2
    assert answer.stderr.startswith(
        "ConfigError: the annotation file already exists and differs from the proposal\n"
        "  in: file train_split/eval.json\n"
        "  fix: write another: `fcos init birds -o OTHER.json`; or replace it: `fcos init birds --force`\n"
    )
    assert ([file.name for file in mine.parent.iterdir()], mine.read_text()) == (["eval.json"], "[1]")
    assert not Path("train.json").exists()
    assert fcos("init", "birds", "--force").exit_code == 0
    assert len(read_annotations(mine)) == 2


def test_init_again_changes_nothing(folder: Path) -> None:
    fcos("init", "birds")
    first = Path("train.json").read_text()
    assert fcos("init", "birds").exit_code == 0
    assert Path("train.json").read_text() == first


def test_init_prints_what_the_reader_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "labels"):
        (tmp_path / "birds" / name).mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (64, 48)).save(f"birds/images/{index}.jpg")
    for index in range(2):
        Path(f"birds/labels/{index}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    answer = fcos("init", "birds")
    assert answer.exit_code == 0, answer.output
    assert "note: 1 image without a label file counts as background" in answer.stderr


def test_init_of_a_folder_without_annotations_says_what_is_known(folder: Path) -> None:
    (folder / "all.txt").unlink()
    answer = fcos("init", "birds")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("DatasetError: ")
    assert "birds" in answer.stderr


@pytest.mark.parametrize("name", ["bccd", "raccoon", "coco_mini"])
def test_init_proposes_for_real_data(
    shared: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = fcos("init", str(shared / "data" / name))
    assert answer.exit_code == 0, answer.output
    config = load_config(tmp_path / "train.json")
    check_paths(config)
    assert config.horizontal_flip
    assert "split of the folder" in answer.output


def test_train_on_a_folder_writes_its_config_and_trains_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    finished = Run(Path("run"), finished=True)
    Path("run").mkdir()
    line = {"kind": "eval", "step": 1, "epoch": 1, "map_mean": 0.5, "stats": [0.5] * 12}
    Path("run/metrics.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(
        "fcos.report.after_training.train", lambda config, callbacks: trained.append(config) or finished
    )
    answer = fcos("train", "birds", "epochs=3")
    assert answer.exit_code == 0, answer.output
    assert "written to train.json" in answer.output
    assert [config.epochs for config in trained] == [3]
    [told] = [line.split() for line in answer.output.splitlines() if line.split()[:1] == ["epochs"]]
    assert told == ["epochs", "3", "command", "line,", "not", "written"]
    assert trained[0].list_train == str(folder.parent / "train_split" / "train.json")


def test_train_answers_a_wrong_setting_before_it_loads_torch(folder: Path) -> None:
    Path("train.json").write_text('{"epochs_": 3}')
    answer = fcos("train", "train.json", "lr_base=0")
    assert answer.exit_code == 2
    assert '"epochs_" is not a setting' in answer.stderr
    assert '"lr_base": 0 is not a valid value\n  in: command line, lr_base=0' in answer.stderr


def test_train_on_a_folder_answers_a_wrong_setting_before_it_writes(folder: Path) -> None:
    answer = fcos("train", "birds", "imgsz=640", "epohs=3")
    assert answer.exit_code == 2
    assert 'use "view_size" (longest side after resizing) and "short_side" (' in answer.stderr
    assert 'did you mean "epochs"?' in answer.stderr
    assert [path.name for path in folder.parent.iterdir()] == ["birds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("epochs=abc", "view_size=0"),
            '"epochs": "abc" is not a valid value\n  in: command line, epochs=abc',
        ),
        (("name_file=names.txt",), "names.txt does not exist\n  in: command line, name_file=names.txt"),
        (("model=fcos_r5",), 'did you mean "fcos_r50"?'),
        (("view_size=90",), "is more than view_size 90, the longest side\n  in: the proposal; command"),
    ],
)
def test_train_on_a_folder_answers_a_wrong_value_before_it_writes(
    folder: Path, words: tuple[str, ...], message: str
) -> None:
    answer = fcos("train", "birds", *words)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert [path.name for path in folder.parent.iterdir()] == ["birds"]


def test_train_on_a_folder_takes_a_value_that_goes_with_the_proposal_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fcos.report.after_training.train", lambda config, callbacks: Run(Path("run"), False, exit_code=143)
    )
    assert fcos("train", "birds", "view_size=700").exit_code == 143  # less than the default short_side
    assert Path("train.json").exists()


def test_stopped_training_ends_with_the_exit_code_of_its_signal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fcos.report.after_training.train", lambda config, callbacks: Run(Path("run"), False, exit_code=143)
    )
    Path("train.json").write_text("{}")
    assert fcos("train", "train.json").exit_code == 143


@pytest.mark.parametrize("content", [None, "{]\n{}\n"])
def test_finished_training_without_its_metrics_ends_with_what_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    Path("run").mkdir()
    Path("run/best.safetensors").touch()
    if content:
        Path("run/metrics.jsonl").write_text(content)
    monkeypatch.setattr(
        "fcos.report.after_training.train", lambda config, callbacks: Run(Path("run"), finished=True)
    )
    Path("train.json").write_text("{}")

    answer, as_json = fcos("train", "train.json", "load=true"), fcos("train", "train.json", "--json")

    assert (answer.exit_code, as_json.exit_code) == (0, 0), answer.output
    assert "model:    run/best.safetensors\n" in answer.stdout
    assert answer.stderr.startswith("warning: ")
    assert "metrics.jsonl" in answer.stderr
    left = json.loads(as_json.stdout)
    assert (left["finished"], left["model"], left["metrics"]) == (True, "run/best.safetensors", None)


def test_init_of_a_folder_without_a_box_writes_nothing(folder: Path) -> None:
    (folder / "all.txt").unlink()
    (folder / "data.yaml").write_text("train: .\nnames: [bird]\n")
    answer = fcos("init", "birds")
    assert answer.exit_code == 2
    assert "10 images, but no boxes (read as format yolo)" in answer.stderr
    assert not Path("train.json").exists()


def test_init_says_that_it_cannot_write_before_it_reads(folder: Path) -> None:
    Path("file").touch()
    answer = fcos("init", "nowhere", "-o", "file/train.json")
    assert answer.exit_code == 2
    assert answer.stderr.startswith(
        "OutputError: cannot be written: Not a directory\n  in: file/train.json\n"
    )
