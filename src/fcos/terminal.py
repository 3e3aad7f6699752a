"""Text from files on its way to a terminal.

A class name or a file name may hold escape codes, which a terminal obeys: they retitle its window, move the
cursor over what stands there, or type for the user. They are shown as text instead.
"""

from __future__ import annotations

import unicodedata

MAX_LINE = 1000  # characters

# Cc: control characters. Cs: halves of a surrogate pair, which no encoding takes. Cf is not refused as a
# whole: it holds marks that reorder a line (U+202E), but also joiners that many scripts and emoji need.
UNSAFE_CATEGORIES = ("Cc", "Cs")
REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def shown(text: str) -> str:
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
