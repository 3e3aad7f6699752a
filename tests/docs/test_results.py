"""The README's figures are those of `benchmarks/RESULTS.md`."""

from __future__ import annotations

import re

import pytest

from .conftest import DOCS

README = DOCS.parent / "README.md"
RESULTS = DOCS.parent / "benchmarks" / "RESULTS.md"


@pytest.fixture
def sections() -> dict[str, str]:
    """The sections of the results by their titles."""
    _, *parts = RESULTS.read_text(encoding="utf-8").split("\n## ")
    return dict(part.split("\n", 1) for part in parts)


def test_the_readme_shows_the_summary_of_the_results(sections: dict[str, str]) -> None:
    table = sections["Summary"][sections["Summary"].index("| what |") :].strip()
    assert table in README.read_text(encoding="utf-8")


def test_figures_of_the_summary_stand_in_the_sections(sections: dict[str, str]) -> None:
    rows = [row.split(" | ") for row in sections.pop("Summary").splitlines() if row.startswith("| ")]
    measured = set(re.findall(r"\d+(?:\.\d+)?", " ".join(sections.values())))
    figures = [figure for row in rows for cell in row[1:3] for figure in re.findall(r"\d+(?:\.\d+)?", cell)]
    assert len(figures) > 20
    assert [figure for figure in figures if figure not in measured] == []
