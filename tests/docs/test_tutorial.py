"""The tutorial, line by line as a user types it, with fewer images and a narrower network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DOCS, commands_of

PAGE = DOCS / "tutorial.md"
SMALLER = {
    "--num-train 1100": "--num-train 24 --num-eval 8",
    "augmentation=false": "augmentation=false backbone=test_efficientnet pretrain=false fpn_channels=16 "
    "head_channels=16 head_convs=1 strides=[8,16,32] regress_ranges=[64,128]",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty working directory."""
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where `fcos` and `python` are those of this interpreter."""
    programs = tmp_path_factory.mktemp("bin")
    for name, words in (("fcos", "-m fcos"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    package = str(DOCS.parent / "src")
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": package}


@pytest.mark.slow
def test_every_command_does_what_the_page_says(folder: Path, environment: dict[str, str]) -> None:
    lines = [line for line in commands_of(PAGE) if not line.startswith("pip ")]
    for whole, smaller in SMALLER.items():
        assert sum(whole in line for line in lines) == 1
        lines = [line.replace(whole, smaller) for line in lines]
    for line in lines:
        result = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"

    left = re.findall(r"^\| (`.+?`) \| .+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    files = [name for cell in left for name in re.findall(r"`([\w.]+)/?`", cell) if "." in name]
    assert "best.safetensors" in files
    assert [name for name in files if not (folder / "runs" / "digits" / name).is_file()] == []
    assert len(list((folder / "found").rglob("*.jpg"))) == 8


@pytest.mark.slow
def test_python_of_the_page_runs(folder: Path, environment: dict[str, str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        result = subprocess.run(
            ["python", "-c", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    assert (folder / "drawn.jpg").is_file()


def test_what_is_installed_is_offered() -> None:
    project = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"pip install '\.\[([\w,]+)\]'", PAGE.read_text(encoding="utf-8"))
    assert extras
    for name in ",".join(extras).split(","):
        assert f"\n{name} = [" in project
