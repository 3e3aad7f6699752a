"""Parse numbers and flags of annotation files strictly, or explain why they are invalid.

Exporters write numbers as text, flags as words, ids as floats. Such a value is accepted only if it is
unambiguous; everything else is a ValueError whose message continues "image_id ..." or "iscrowd ...".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fcos.terminal import counted, printable_line

T = TypeVar("T")
MAX_ID = 2**63 - 2  # ids are stored as 64-bit integers; the last one of each sign is left free
EXACT = 2**53  # integers up to here are exact as floats
MAX_SIDE = 2**31 - 1
SHOWN_CHARACTERS = 40
WHOLE = re.compile(r"0|-?[1-9]\d{0,18}", re.ASCII)
FLAGS = {"0": False, "false": False, "1": True, "true": True}


def whole_number(value: Any) -> int:
    """An id: 7, 7.0 and "7" are seven; "07", 7.5 and true are rejected."""
    number = value
    if (isinstance(value, str) and WHOLE.fullmatch(value)) or (
        isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    ):
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"is {described(value)}, not an integer")
    if abs(number) > MAX_ID:
        raise ValueError(f"is {described(value)}, which does not fit into 64 bits")
    return number


def named(name: str, reader: Callable[[Any], T], value: Any) -> T:
    """A parsed value; its ValueError begins with the name of the value."""
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def flag(value: Any) -> bool:
    """0, 1, false or true, also as strings; null is false."""
    if value is None:
        return False
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in FLAGS:
        return FLAGS[value.lower()]
    raise ValueError(f"is {described(value)}, not 0 or 1")


def number(word: str) -> float:
    """A number in a line of text; `nan` and `inf` are accepted, for `check` to report."""
    try:
        if "_" in word:  # which Python accepts between digits
            raise ValueError
        return float(word)
    except ValueError:
        raise ValueError(f"'{cut(word)}' is not a number") from None


def coordinate(value: Any) -> float:
    """A side or corner of a box in JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"contains {described(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"contains {described(value)}, which is too large") from None


def side(value: Any) -> int | None:
    """A stated height or width in pixels, which is optional; None if invalid."""
    stated = _lenient(value)
    return int(stated) if 1 <= stated <= MAX_SIDE else None


def area(value: Any) -> float:
    """A stated area; NaN if invalid, so that the area of the box is used."""
    stated = _lenient(value)
    return stated if 0 <= stated < math.inf else math.nan


def described(value: Any) -> str:
    """A short description of a JSON value, for a sentence."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f'the string "{cut(value)}"'
        case int() if abs(value) >= 10**SHOWN_CHARACTERS:
            return "a number with more than 40 digits"
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"a list of length {len(value)}"
    return "an object"


def cut(text: str) -> str:
    """The beginning of a text on one line."""
    shown = printable_line(text[:SHOWN_CHARACTERS])
    return shown if len(text) <= SHOWN_CHARACTERS else f"{shown}..."


def _lenient(value: Any) -> float:
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def upright_around(box_xyxy: Sequence[float], degrees: float) -> list[float]:
    """The axis-aligned box around a box rotated about its center, as CVAT writes them (xyxy)."""
    x1, y1, x2, y2 = box_xyxy
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half_w, half_h = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return [x - half_w, y - half_h, x + half_w, y + half_h]


def rotated_note(number: int) -> list[str]:
    """The note on rotated boxes, if there are any."""
    boxes = counted(number, "box is rotated", "boxes are rotated")
    return [f"{boxes}: the axis-aligned boxes around them are used"] if number else []
