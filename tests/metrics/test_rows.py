from __future__ import annotations

import json

import numpy as np
import pytest

from fcos.metrics import rows as rows_module
from fcos.metrics.rows import results_json, rows_of


@pytest.mark.parametrize("at_once", [1, 7, 50, 4096])
def test_results_file_holds_the_entries(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ROWS_AT_ONCE", at_once)
    random = np.random.default_rng(0)
    rows = rows_of(random.uniform(0, 1000, (50, 7)))
    rows["image_id"], rows["category_id"] = random.integers(1, 2**63 - 1, (2, 50))
    rows[0] = (2**63 - 1, [0, 1e-9, 123456.789012, -0.5], 1, 2**53 + 1)
    assert json.loads(results_json(rows)) == [
        {
            "image_id": int(row["image_id"]),
            "category_id": int(row["category_id"]),
            "bbox": row["bbox"].round(rows_module.BOX_DIGITS).tolist(),
            "score": float(row["score"].round(rows_module.SCORE_DIGITS)),
        }
        for row in rows
    ]
    assert json.loads(results_json(np.zeros((0, 7)))) == []
