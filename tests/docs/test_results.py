"""The README's figures are those of `benchmarks/RESULTS.md`."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

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


@pytest.mark.parametrize("page", [README, RESULTS])
def test_accuracy_at_equal_time_is_that_of_the_results_file(page: Path) -> None:
    lines = (RESULTS.parent / "accuracy.jsonl").read_text(encoding="utf-8").splitlines()
    of_seeds: dict[tuple[str, str], list[float]] = {}
    for result in map(json.loads, lines):
        assert result["budget"] == "short"
        of_seeds.setdefault((result["method"], result["set"]), []).append(100 * result["ap"])
    aps: dict[str, dict[str, float]] = {}
    for (method, name), of_cell in of_seeds.items():
        aps.setdefault(method, {})[name] = statistics.mean(of_cell)

    text = page.read_text(encoding="utf-8")
    header, _, *rows = text[text.index("|  | bccd |") :].split("\n\n")[0].splitlines()
    *sets, _ = (title.strip() for title in header.split("|")[2:-1])
    methods = ["everyday", "imagenet", "old", "ssdlite_v2", "fcos_tv"]
    for method, row in zip(methods, rows, strict=True):
        *cells, mean = (cell.strip() for cell in row.split("|")[2:-1])
        shown = {name: cell.split(" ")[0].strip("*") for name, cell in zip(sets, cells, strict=True) if cell}
        assert shown == {name: f"{ap:.1f}" for name, ap in aps[method].items()}
        whole = f"{statistics.mean(aps[method].values()):.1f}" if len(aps[method]) == len(sets) else ""
        assert mean == whole
