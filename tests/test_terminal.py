from fcos.errors import FcosError
from fcos.terminal import is_printable, printable, printable_line


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
