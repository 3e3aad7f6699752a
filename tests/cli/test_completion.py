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
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}
    options=()
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


def test_keys_are_completed_and_no_blank_is_put_behind_them(bash: dict[str, str]) -> None:
    offered = press_tab(bash, "fcos train train.json epo", "fcos quickstart lr_bas", "fcos config lr_bas")
    assert offered == ["epochs= (nospace)", "lr_base= (nospace)", "lr_base= (nospace)"]


def test_values_are_completed_where_a_setting_takes_words(bash: dict[str, str]) -> None:
    lines = (
        "fcos train train.json model=fcos_r1",
        "fcos train train.json horizontal_flip=",
        "fcos config a=b",
    )
    # bash replaces what stands behind the "=", so the key is not repeated
    assert press_tab(bash, *lines) == ["fcos_r18 fcos_r101 ()", "true false ()", " ()"]


def test_files_are_left_to_the_shell(bash: dict[str, str]) -> None:
    assert press_tab(bash, "fcos train ", "fcos config birds") == [" (default)", " (default)"]
