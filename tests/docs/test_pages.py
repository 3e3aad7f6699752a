"""What the pages say, as far as a program can see whether it is true."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import fcos
from fcos.cli import main
from fcos.config import ALIASES, TrainConfig

from .conftest import DOCS, commands_of

PAGES = sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_these_options(page: Path) -> None:
    for line in commands_of(page):
        for words in split_commands(line):
            name = words[1]
            command = main.get_command(click.Context(main), name)
            assert command is not None, f"{line}: there is no command {name}"
            command.make_context(name, list(words[2:]))  # a wrong option or number of words raises


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_parse(page: Path) -> None:
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert ast.parse(example).body  # SyntaxError: it does not parse


def split_commands(line: str) -> list[list[str]]:
    """The calls of `fcos` in a line of the shell, words by words."""
    calls = []
    for part in re.split(r"&&|\||;", line):
        words = shlex.split(part)
        if words[:1] == ["fcos"]:
            calls.append(words)
    return calls


@pytest.mark.parametrize("page", sorted(DOCS.glob("from_*.md")), ids=lambda page: page.stem)
def test_migration_tables_name_settings_that_exist(page: Path) -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for _, here in rows for name in re.findall(r'[`(]"?(\w+)"?(?:=|":)', here)]
    named += [name for _, here in rows for name in re.findall(r"`([a-z]+_[a-z_]+|device|classes)`", here)]
    known = {*TrainConfig.model_fields, *ALIASES, "key", "boxes_xyxy", "class_names", "map_mean"}
    assert len(named) > 5
    assert set(named) <= known


def test_files_of_the_change_table_exist(docs: Path) -> None:
    package = Path(fcos.__file__).parent
    table = re.findall(r"^\| .+ \| (.+) \|$", (docs / "code.md").read_text(encoding="utf-8"), re.MULTILINE)
    files = [file for row in table for file in re.findall(r"`([^`]+)`", row) if "<" not in file]
    assert len(files) > 15
    assert [file for file in files if not (package / file).exists()] == []
