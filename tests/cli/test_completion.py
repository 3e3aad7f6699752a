"""Shell completion, in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

# What bash does when Tab is pressed. compopt works inside of a completion only: here it is written down.
PRESS_TAB = """
eval "$(_FCOS_COMPLETE=bash_source fcos)"
compopt() { options+=("$2"); }
for line in "$@"; do
    COMP_WORDS=($line)
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    options=() COMPREPLY=()
    _fcos_completion fcos
    IFS=' '
    echo "${COMPREPLY[*]} (${options[*]})"
done
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a bash whose `fcos` is the one that is tested."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    program = tmp_path_factory.mktemp("bin") / "fcos"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fcos "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def press_tab(bash: dict[str, str], *lines: str) -> list[str]:
    """What bash offers behind each line, and how it is told to go on."""
    words = ["bash", "--norc", "-c", PRESS_TAB, "bash", *lines]
    answer = subprocess.run(words, env=bash, capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    return answer.stdout.splitlines()


def test_commands_options_and_choices_are_completed(bash: dict[str, str]) -> None:
    offered = press_tab(bash, "fcos tr", "fcos eval --de", "fcos convert x --to ")
    assert offered == ["train ()", "--device ()", "coco list voc yolo ()"]


def test_files_are_left_to_the_shell(bash: dict[str, str]) -> None:
    assert press_tab(bash, "fcos train ", "fcos eval x --list ") == [" (default)", " (default)"]
