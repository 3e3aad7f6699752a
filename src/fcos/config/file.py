"""Read a train.json and the command line as raw values, each with its location.

The file is one flat JSON object, so the line of a key is easy to find: a string followed by a colon is always
a key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fcos.errors import ConfigError
from fcos.files import read_text

COMMAND_LINE = "command line"


class Given(NamedTuple):
    """A value as it was written."""

    key: str  # not yet translated or checked
    value: Any  # parsed JSON
    where: str  # file and line, or the word of the command line


def read_file(path: Path) -> list[Given]:
    """Every key of a config file in the order of lines, including duplicates."""
    if path.is_dir():
        what, fix = "this is a folder, not a config file", f"write a config file for it: `fcos init {path}`"
        raise ConfigError(what, where=f"file {path}", fix=fix)
    if not os.path.lexists(path):
        what, fix = "the config file does not exist", "write one for a folder of images: `fcos init FOLDER`"
        raise ConfigError(what, where=f"file {path}", fix=fix)
    text = read_text(path, ConfigError)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise _explain(error, path) from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise ConfigError(
            "the config file contains a number that is too long, or is nested too deeply",
            where=f"file {path}",
            fix="use numbers, strings, true, false, null, or lists of them",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            "the config file must be a single JSON object",
            where=f"file {path}, line 1",
            fix='put the settings in braces: {"list_train": "...", "epochs": 12}',
        )
    places = [(key, line) for key, line in key_lines(text) if key in values]
    return [Given(key, values[key], f"file {path}, line {line}") for key, line in places]


def key_lines(text: str) -> list[tuple[str, int]]:
    """Keys of a flat JSON object with their lines, counted from 1.

    All strings are scanned, so a colon inside a value is not mistaken for the end of a key.
    """
    strings = re.finditer(r'"(?:[^"\\]|\\.)*"(\s*:)?', text)
    keys = [match for match in strings if match[1]]
    return [
        (json.loads(match[0].rstrip(": \t\r\n")), text.count("\n", 0, match.start()) + 1) for match in keys
    ]


def read_override(word: str, text_keys: Collection[str]) -> Given:
    """Parse `key=value`: the value is JSON if valid; else, and always for `text_keys`, it is a string."""
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"{word!r} is not of the form key=value",
            where=COMMAND_LINE,
            fix="write key=value without spaces, for example epochs=24",
        )
    value = text if key in text_keys else _json_or_text(text)
    return Given(key.strip(), value, f"{COMMAND_LINE}, {word}")


def _json_or_text(text: str) -> Any:
    # device=0,1 is a list too, since many shells interpret brackets
    for candidate in [text, f"[{text}]"] if "," in text else [text]:
        with suppress(ValueError, RecursionError):
            return json.loads(candidate)
    return text


def _explain(error: json.JSONDecodeError, path: Path) -> ConfigError:
    """The error for invalid JSON, with what to write instead."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    python_words = {"True": "true", "False": "false", "None": "null"}
    word = re.split(r"\W", after, maxsplit=1)[0]
    fixes = (
        (not before and not after, 'write the settings as {"list_train": "...", "epochs": 12}'),
        (after.startswith(("//", "#", "/*")), "remove the comment: JSON does not allow comments"),
        (before.endswith(",") and after[:1] in ("}", "]"), "remove the comma before the closing bracket"),
        (re.match(r",\s*[}\]]", after), "remove the comma before the closing bracket"),
        (after.startswith("'"), 'use double quotes: "..."'),
        (word in python_words, f"write {python_words.get(word)} instead of {word}"),
        ("delimiter" in error.msg and not after, "add the missing closing brace"),
        ("',' delimiter" in error.msg, "add the missing comma before this position"),
        (True, "correct the JSON at this position"),
    )
    fix = next(fix for applies, fix in fixes if applies)
    return ConfigError(
        f"the config file is not valid JSON ({error.msg})",
        where=f"file {path}, line {error.lineno}, column {error.colno}",
        fix=fix,
    )
