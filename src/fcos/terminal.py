"""Make text from files safe to print in a terminal.

A class name or a file name may contain escape codes, which a terminal executes: they change its title,
overwrite other text, or type for the user. They are shown as text instead: in names where they are printed
(`printable_line`), in all other output by `SafeStream`.
"""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

MAX_LINE = 1000  # characters

# Cc: control characters. Cs: lone surrogates, which cannot be encoded. Cf is not rejected as a whole: it
# contains marks that reorder a line (U+202E), but also joiners that many scripts and emoji need.
UNSAFE_CATEGORIES = ("Cc", "Cs")
REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

COLORS = re.compile(r"(\x1b\[[0-9;]*m)")
PROGRESS = re.compile(r"(\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[[0-9]*A|\x1b\[2K|\r)")  # rich's progress bars
COLOR_VARIABLES = ("FORCE_COLOR", "TTY_COMPATIBLE")  # rich writes colors without a terminal


def printable(text: str) -> str:
    r"""The text with control characters as escapes (``\x1b``); line breaks and tabs stay."""
    if text.isascii() and text.isprintable():  # nearly always
        return text
    return "".join(_escaped(character) for character in text)


def printable_line(text: str) -> str:
    """`printable`, on one line: for a name in the middle of a sentence or in a table."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def is_printable(text: str) -> bool:
    """Whether a name can be shown as it is: on one line, without control characters."""
    return printable_line(text) == text


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: ``1 box``, ``2,000 boxes``; by default with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def shortened(text: str) -> str:
    """The text with very long lines cut in the middle: a file name of a megabyte is no help in a message."""
    return "\n".join(
        line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 4 :]}"
        for line in text.split("\n")
    )


def _escaped(character: str) -> str:
    if character in "\n\t":
        return character
    unsafe = unicodedata.category(character) in UNSAFE_CATEGORIES or character in REORDERING
    return character.encode("unicode_escape", "surrogatepass").decode("ascii") if unsafe else character


class SafeStream:
    """A text stream that shows control characters as text, except colors in a terminal.

    Args:
        kept: sequences that a terminal gets unchanged.
    """

    def __init__(self, stream: Any, kept: re.Pattern[str] = COLORS) -> None:
        self.stream, self.kept = stream, kept

    def write(self, text: str) -> int:
        """Write the text, made safe."""
        is_terminal = self.stream.isatty() or any(os.environ.get(name) for name in COLOR_VARIABLES)
        parts = self.kept.split(text) if is_terminal else [text]
        self.stream.write("".join(part if place % 2 else printable(part) for place, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click would write to it, past us, where the encoding is ASCII
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def safe_output() -> Iterator[None]:
    """Make everything printed in the block safe for a terminal; no name can make a command fail."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal's encoding lacks is shown as an escape, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def progress_console(**options: Any) -> Console:
    """A console on stderr for progress bars, which move the cursor; what it prints must be `printable`."""
    from rich.console import Console

    stream: Any = sys.stderr
    if isinstance(stream, SafeStream):
        stream = SafeStream(stream.stream, PROGRESS)
    return Console(file=stream, markup=False, emoji=False, **options)


def track(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The same items, with a bar that disappears at the end; no bar without a terminal."""
    from rich import progress

    console = progress_console()
    return progress.track(
        items, what, total=total, console=console, transient=True, disable=not console.is_terminal
    )
