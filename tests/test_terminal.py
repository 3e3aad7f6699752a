import io
import sys

import click
import pytest

from fcos.errors import FcosError
from fcos.terminal import (
    SafeStream,
    counted,
    is_printable,
    printable,
    printable_line,
    safe_output,
    track,
)

NAME = "\x1b[31mcat\x1b[2J\x07\r\x9b\u202e\ud800\x7f"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_colors_are_asked_for(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def test_escape_codes_become_text():
    assert printable("\x1b]0;title\x07cat") == "\\x1b]0;title\\x07cat"
    assert printable("\x9b31m") == "\\x9b31m"  # the one-byte form of ESC [


def test_marks_that_reorder_a_line_become_text():
    assert printable("cat\u202egpj.exe") == "cat\\u202egpj.exe"


def test_half_of_a_surrogate_pair_becomes_text():
    assert printable("a\ud800") == "a\\ud800"


def test_letters_of_all_scripts_and_emoji_stay():
    name = "Katze, Кошка, 猫, קאַץ, 👩‍🔬"
    assert printable(name) == name
    assert is_printable(name)


def test_line_breaks_stay_in_a_message_and_not_in_a_name():
    assert printable("a\n\tb") == "a\n\tb"
    assert printable_line("a\n\tb") == "a\\n\\tb"
    assert not is_printable("a\nb")


def test_no_error_message_holds_escape_codes():
    error = FcosError("no class '\x1b[2J'", where="a\x07.txt", fix="rename \x1b")
    assert "\x1b" not in str(error)
    assert "\x07" not in str(error)
    assert error.what == "no class '\x1b[2J'"


def test_a_stream_to_a_file_gets_no_control_characters():
    file = io.StringIO()
    assert SafeStream(file).write(f"{NAME}\n\tdog") == len(NAME) + 5
    assert file.getvalue() == "\\x1b[31mcat\\x1b[2J\\x07\\r\\x9b\\u202e\\ud800\\x7f\n\tdog"


def test_a_terminal_gets_colors_and_nothing_that_moves_its_cursor():
    terminal = Terminal()
    SafeStream(terminal).write(click.style("red", fg="red") + "\x1b[2K\x1b[1A\x1b]8;;x\x1b\\")
    assert terminal.getvalue() == "\x1b[31mred\x1b[0m\\x1b[2K\\x1b[1A\\x1b]8;;x\\x1b\\"


def test_whatever_prints_inside_is_made_safe(monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with safe_output():
        print("\x1b[2J")
        click.echo("\x07")
        sys.stderr.writelines(["\x9b", "\r"])
    assert (out.getvalue(), err.getvalue()) == ("\\x1b[2J\n\\x07\n", "\\x9b\\r")
    assert (sys.stdout, sys.stderr) == (out, err)


def test_an_ascii_terminal_gets_escapes_and_no_error(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    with safe_output():
        click.echo("\x07 größer")
        sys.stdout.flush()
    assert content.getvalue() == b"\\x07 gr\\xf6\\xdfer\n"


def test_nouns_follow_their_number():
    assert [counted(number, "box", "boxes") for number in (0, 1, 2)] == ["0 boxes", "1 box", "2 boxes"]
    assert counted(3, "problem") == "3 problems"


def test_track_passes_everything_on() -> None:
    assert list(track(iter("abc"), 3, "checking")) == ["a", "b", "c"]
