"""The short form of `benchmarks/fuzz.py`: damaged input ends in no traceback, hang or full memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import processes

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
KINDS = ("list", "coco", "voc", "yolo", "darknet", "config", "image", "model.safetensors", "published.pth")

if not sys.platform.startswith("linux"):
    pytest.skip("cases run in forked processes", allow_module_level=True)


def test_damaged_input_ends_with_a_result_or_one_message(tmp_path: Path) -> None:
    done = processes.run(SCRIPT, "--cases", "250", "--keep", tmp_path / "failures", "--only", *KINDS)
    assert done.returncode == 0, done.stdout + done.stderr
    right, refused, *wrong = map(int, re.findall(r"\d+", done.stdout.partition("| all |")[2])[:6])
    assert right + refused == 250
    assert wrong == [0] * 4
    assert right > 50
    assert refused > 100


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    """With a reader that has a bug the same run ends with 1, and the input is kept."""
    (tmp_path / "sitecustomize.py").write_text(
        "import fcos.data.formats.list as module\n"
        "def read(*args, **options):\n    raise KeyError('a bug')\n"
        'object.__setattr__(module.FORMAT, "read", read)\n'
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sitecustomize, runpy, sys; sys.argv[0] = {str(SCRIPT)!r}; "
            "runpy.run_path(sys.argv[0], run_name='__main__')",
            "--cases",
            "5",
            "--only",
            "list",
        ],
        env={"PYTHONPATH": f"{tmp_path}:{SCRIPT.parent}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "KeyError" in done.stdout + done.stderr
