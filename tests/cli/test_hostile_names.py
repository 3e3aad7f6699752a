"""Names that hold escape codes, control characters and markup, through the commands of a real process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos.terminal import PROGRESS

from ..processes import Process

if sys.platform == "win32":
    pytest.skip("a terminal is made with pty", allow_module_level=True)

CLASS_NAMES = (
    "cat\x1b]0;PWNED\x07",
    "[bold]dog[/bold] :cat:",
    "\x1b[31mred\rx",
    "x\x9b2Jy\u202eq\x7f",
    "a\nb",
)
AS_TEXT = (
    "cat\\x1b]0;PWNED\\x07",
    "[bold]dog[/bold] :cat:",
    "\\x1b[31mred\\rx",
    "x\\x9b2Jy\\u202eq\\x7f",
    "a\\nb",
)
FILE = "\x1b[2J[red].png"
RUN = "run\x1b[2J[red]"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e\ud800-\udfff]")
DRIVER = """
import json, sys
from fcos.cli import main
for words in json.loads(sys.argv[1]):
    print("$", ascii(words[0]).strip("'"), flush=True)
    try:
        main(words, prog_name="fcos")
    except SystemExit as error:
        print("exit", error.code, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with a box of each class, and a training of seconds."""
    folder = tmp_path_factory.mktemp("hostile")
    random = np.random.default_rng(0)
    images, boxes = [], []
    for number in range(4):
        name = f"{number}{FILE}"
        Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": number + 1, "file_name": name, "width": 64, "height": 64})
        for label in range(len(CLASS_NAMES)):
            where = {"image_id": number + 1, "category_id": label + 1, "bbox": [2 + 4 * label, 2, 20, 20]}
            boxes.append({"id": len(boxes) + 1, "area": 400, "iscrowd": 0, **where})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    boxes[0]["bbox"] = [5, 5, 0, 10]
    (folder / "bad.json").write_text(json.dumps(content))
    (folder / "broken").mkdir()
    (folder / "broken" / FILE).write_text("no image")
    sizes = {
        "fpn_channels": 8,
        "head_channels": 8,
        "head_convs": 1,
        "strides": [8, 16, 32],
        "regress_ranges": [16, 32],
    }
    usual = {"pretrain": False, "device": "cpu", "num_workers": 0, "warmup_iter": 0, "tensorboard": False}
    settings = {
        **{"list_train": "a.json", "list_eval": "a.json", "run_folder": RUN, "model": "fcos_lite0"},
        **{"backbone": "test_efficientnet", "freeze_stages": 0, "epochs": 1, "nbatch_train": 4},
        **{"view_size": 64, "short_side": None},
    }
    (folder / "train.json").write_text(json.dumps({**settings, **sizes, **usual}))
    return folder


def said_in_a_terminal(folder: Path, *commands: list[str]) -> str:
    """What a terminal gets of these commands, run one after the other in one process."""
    import pty

    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = Process("-c", DRIVER, json.dumps(commands), env=environment, cwd=folder, streams=[theirs] * 3)
    os.close(theirs)
    parts: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 2**16):
                parts.append(part)
        except OSError:  # EIO: the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    process.wait(timeout=300)
    reader.join()
    os.close(ours)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def test_a_terminal_gets_no_control_characters_of_names_from_any_command(folder: Path) -> None:
    run = RUN
    said = said_in_a_terminal(
        folder,
        *(
            ["check", "bad.json"],
            ["check", "a.json", "bad.json"],
            ["convert", "a.json", "--to", "coco", "-o", FILE],
        ),
        *(["config", "train.json"], ["train", "train.json"], ["info", run], ["analyze", run]),
        *(["eval", run, "--device", "cpu"], ["report", run, "--device", "cpu"]),
        *(
            ["predict", run, ".", "broken", "--out", "out", "--device", "cpu"],
            ["predict", run, f"no{FILE}"],
        ),
        *(["train", f"no{FILE}"], ["config", "train.json", f"{FILE}=1"], [FILE], ["info", f"--{FILE}"]),
    )

    assert "\x1b[1m" in said  # it was a terminal, and our own colors arrive
    assert "\x1b[31mred" not in said
    assert CONTROL.findall(PROGRESS.sub("", said)) == []
    assert "Traceback" not in said
    of_command: defaultdict[str, str] = defaultdict(str)
    for part in said.replace("\r\n", "\n").split("$ ")[1:]:
        command, _, text = part.partition("\n")
        of_command[command] += text
    for command in ("check", "info", "eval"):
        for name in AS_TEXT:
            assert name in of_command[command], (command, name)
    for command, name in (("check", FILE), ("train", RUN), ("eval", RUN), ("report", RUN), ("predict", FILE)):
        assert name.replace("\x1b", "\\x1b") in of_command[command], command


def test_json_holds_names_as_they_are(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fcos", "check", "bad.json", "--json"],
        cwd=folder,
        capture_output=True,
        check=False,
    )

    assert CONTROL.findall(result.stdout.decode("ascii")) == []
    [part] = json.loads(result.stdout)["parts"]
    assert tuple(part["card"]["boxes_per_class"]) == CLASS_NAMES
    assert FILE in part["problems"][0]["where"]
