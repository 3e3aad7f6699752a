"""What is read of a run folder that was damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcos.errors import DatasetError
from fcos.report.coverage import read_coverage
from fcos.report.finished_run import read_results

ROW = '{"image_id": 9007199254740993, "category_id": 2, "bbox": [1, 2.5, 3, 4], "score": 0.5}'


def test_results_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(f"[{ROW}]")
    [row] = read_results(tmp_path)
    assert row == {"image_id": 2**53 + 1, "category_id": 2, "bbox": [1, 2.5, 3, 4], "score": 0.5}


@pytest.mark.parametrize("content", ["", f"[{ROW}", "{}", "[1]", '[{"image_id": 1}]', ROW, '["\\ud800"]'])
def test_damaged_results_say_what_writes_them_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(
        DatasetError, match=r"damaged(.|\n)*results.json\n  fix: write it again: `fcos eval .* --out"
    ):
        read_results(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"reasons": 1}', '{"reasons": [[1]]}'])
def test_damaged_coverage_says_how_to_go_without(tmp_path: Path, content: str) -> None:
    (tmp_path / "coverage.json").write_text(content)
    with pytest.raises(DatasetError, match=r"damaged: .+\n  in: .*coverage.json\n  fix: remove it"):
        read_coverage(tmp_path)
