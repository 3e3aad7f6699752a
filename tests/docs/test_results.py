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
    aps = {cell: statistics.mean(of_cell) for cell, of_cell in of_seeds.items()}

    text = page.read_text(encoding="utf-8")
    header, _, *rows = text[text.index("|  | bccd |") :].split("\n\n")[0].splitlines()
    names = [title.strip() for title in header.split("|")[2:-1]]
    assert names[4:] == ["mean", "voc07", "mean of all"]
    four, all_sets = names[:4], [*names[:4], "voc07"]
    methods = ["everyday", "imagenet", "old", "ssdlite_v2", "fcos_tv"]
    for method, row in zip(methods, rows, strict=True):
        shown = [cell.split("/")[0].split("±")[0].strip(" *") for cell in row.split("|")[2:-1]]
        expected = [aps.get((method, name)) for name in names]
        expected[4] = statistics.mean(aps[method, name] for name in four)
        if (method, "voc07") in aps:
            expected[6] = statistics.mean(aps[method, name] for name in all_sets)
        assert shown == ["" if ap is None else f"{ap:.1f}" for ap in expected]
