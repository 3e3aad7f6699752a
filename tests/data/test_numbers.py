"""What exporters write as numbers and flags means one thing, or is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fcos.data import numbers


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        ("-7", -7),
        (2**53 + 1, 2**53 + 1),
        (2**63 - 2, 2**63 - 2),
        (str(2**63 - 2), 2**63 - 2),
    ],
)
def test_an_id_is_a_whole_number_in_any_dress(value: Any, wanted: int) -> None:
    assert numbers.whole_number(value) == wanted


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("x", 'is the string "x", not an integer'),
        ("07", 'is the string "07", not an integer'),
        ("1.0", 'is the string "1.0", not an integer'),
        ("", 'is the string "", not an integer'),
        ("\u0661", 'is the string "\u0661", not an integer'),
        (7.5, "is 7.5, not an integer"),
        (math.nan, "is nan, not an integer"),
        (1e20, r"is 1e\+20, not an integer"),
        (True, "is true, not an integer"),
        (None, "is null, not an integer"),
        ([7], "is a list of length 1, not an integer"),
        ({}, "is an object, not an integer"),
        (2**63, "is 9223372036854775808, which does not fit into 64 bits"),
        (-(2**63), "which does not fit into 64 bits"),
        (10**400, "is a number with more than 40 digits, which does not fit into 64 bits"),
        ("9" * 5000, r'is the string "9{40}\.\.\.", not an integer'),
    ],
)
def test_what_is_no_id_is_named(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        numbers.whole_number(value)


@pytest.mark.parametrize("value", [0, 0.0, False, None, "0", "false", "False"])
def test_flags_that_are_not_set(value: Any) -> None:
    assert numbers.flag(value) is False


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", "TRUE"])
def test_flags_that_are_set(value: Any) -> None:
    assert numbers.flag(value) is True


@pytest.mark.parametrize("value", [2, -1, 0.5, math.nan, "", "yes", "2", [0], {}])
def test_flags_that_can_mean_anything_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not 0 or 1"):
        numbers.flag(value)


@pytest.mark.parametrize("word", ["1_0", "x", "0,5", "1,2,3", "0x10", ""])
def test_a_number_in_a_line_is_written_as_people_do(word: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        numbers.number(word)


@pytest.mark.parametrize("value", [64, 64.0, "64", "64.0"])
def test_a_stated_side_may_be_text(value: Any) -> None:
    assert numbers.side(value) == 64


@pytest.mark.parametrize(
    "value", [None, 0, 0.5, -1, math.nan, math.inf, 1e300, 2**31, 10**400, "x", "", [64], True]
)
def test_a_stated_side_that_makes_no_sense_is_not_stated(value: Any) -> None:
    assert numbers.side(value) is None


@pytest.mark.parametrize("value", [None, -1, math.nan, math.inf, 10**400, "", "x", [1], {}])
def test_a_stated_area_that_makes_no_sense_is_not_stated(value: Any) -> None:
    assert math.isnan(numbers.area(value))


def test_areas_may_be_zero_or_text() -> None:
    assert (numbers.area(0), numbers.area("12.5")) == (0, 12.5)
