"""A format is one module with one object: everything else finds it in the registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fcos
from fcos.config import TrainConfig, expects, load_config
from fcos.data.registry import all_formats
from fcos.errors import ConfigError
from fcos.format_names import FORMAT_NAMES

TOY = '''
"""One box a line: image;class;x1;y1;x2;y2."""

from pathlib import Path

from fcos.data.annotations import Annotations, Record
from fcos.data.image_files import relative_name
from fcos.data.registry import DataFormat


def read(source, *, root=None, names=None):
    rows = [line.split(";") for line in Path(source).read_text().splitlines()]
    names = names or sorted({row[1] for row in rows})
    folder = root or Path(source).parent
    records = [
        Record.make(folder / row[0], [[float(side) for side in row[2:]]], [names.index(row[1])], image_id)
        for image_id, row in enumerate(rows, start=1)
    ]
    return Annotations.from_records(records, names, source=source, format="toy")


def write(annotations, out, *, root=None, copy_images=False):
    lines = [
        ";".join([relative_name(record.path, root), annotations.class_names[label], *map(str, box)])
        for record in annotations
        for box, label in zip(record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True)
    ]
    out.write_text("\\n".join(lines) + "\\n")


def files(folder):
    return sorted(folder.glob("*.toy"))


FORMAT = DataFormat(
    name="toy",
    looks_like="toys (*.toy)",
    suffixes=(".toy",),
    read=read,
    folder_signs=((100, lambda folder: bool(files(folder))),),
    files=files,
    box_word="toy box",
    write=write,
    written_suffix=".toy",
)
'''

# Commands as the process of a user runs them, one after the other in one process: importing takes longest.
EACH_COMMAND = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from fcos.cli import main

answers = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            main(words, prog_name="fcos")
        except SystemExit:
            pass
    answers.append(said.getvalue())

from lightning_fabric import Fabric
from fcos.config import load_config
from fcos.train.data import load_data
config = load_config({"list_train": "a.toy", "data_format": "toy"})
annotations, _, _ = load_data(config, Fabric(accelerator="cpu", devices=1))
answers.append(f"{annotations.format} {annotations.class_names} {annotations[0].boxes_xyxy.tolist()}")
print(json.dumps(answers))
"""


@pytest.fixture
def with_toy(tmp_path: Path, make_image):
    """Runs commands with a copy of the package that has one module more; answers with what each printed, and
    with the annotations of a.toy as a training reads them."""
    package = shutil.copytree(Path(fcos.__file__).parent, tmp_path / "copy" / "fcos")
    (package / "data" / "formats" / "toy.py").write_text(TOY)
    data = tmp_path / "data"
    data.mkdir()
    make_image("data/0.jpg", 40, 30)
    (data / "a.toy").write_text("0.jpg;ball;1;2;30;20\n")
    make_image("data/bad/0.jpg", 40, 30)
    (data / "bad" / "a.toy").write_text("0.jpg;ball;1;2;60;20\n")
    (data / "bad" / "a.tox").write_text("")

    def run(*commands: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", EACH_COMMAND],
            cwd=data,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "copy"), "OMP_NUM_THREADS": "1"},
            input=json.dumps([command.split() for command in commands]),
            capture_output=True,
            text=True,
            check=True,
        )
        answers: list[str] = json.loads(done.stdout)
        return answers

    return run


def test_one_module_more_is_a_format_of_every_command(with_toy, tmp_path: Path) -> None:
    helped, recognized, named, to_coco, _, to_folder, refused, outside, unknown, annotations = with_toy(
        "--help",
        "check .",
        "check a.toy --format toy",
        "convert a.toy --to coco -o b.json",
        "convert b.json --to toy -o c.toy",
        "convert b.json --to toy -o c",
        "config data_format=tox",
        "check bad/a.toy",
        "check bad/a.tox",
    )
    assert "coco, list, toy, voc, yolo" in helped
    assert "(toy)" in recognized
    assert "no problems" in named
    assert "1 image, 1 box, 1 class" in to_coco
    assert (tmp_path / "data" / "c.toy").read_text() == "0.jpg;ball;1.0;2.0;30.0;20.0\n"
    assert "format toy is written to a .toy file" in to_folder
    assert '"yolo"' in refused
    assert annotations == "toy ('ball',) [[1.0, 2.0, 30.0, 20.0]]"
    assert "toy box 1, image '0.jpg': box [1, 2, 60, 20] extends beyond the image" in outside
    assert "toys (*.toy)" in unknown


def test_the_settings_take_the_formats_there_are() -> None:
    assert expects("data_format") == " or ".join(f'"{name}"' for name in ("auto", *FORMAT_NAMES))
    assert load_config({"data_format": "voc"}).data_format == "voc"
    with pytest.raises(ConfigError, match="data_format"):
        load_config({"data_format": "vok"})
    assert TrainConfig.model_fields["data_format"].default == "auto"


def test_every_format_is_named_like_its_module_and_can_be_found_in_a_folder() -> None:
    assert FORMAT_NAMES == ("coco", "list", "voc", "yolo")
    assert tuple(format.name for format in all_formats()) == FORMAT_NAMES
    for format in all_formats():
        assert format.folder_signs
        assert (format.files is None) != (format.splits is None)
    for kind in ("folder_signs", "text_signs"):  # of two signs that are as strong none would decide
        strengths = [strength for format in all_formats() for strength, _ in getattr(format, kind)]
        assert len(strengths) == len(set(strengths))


def test_every_format_is_explained_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for format in all_formats():
        assert f"| `{format.name}` | {format.looks_like} |" in text
