"""A disk that fills up while an exported file is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fcos.errors import OutputError
from fcos.export import torch_program
from fcos.files import written

resource = pytest.importorskip("resource", reason="limits of a process")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_a_program_that_does_not_fit_is_an_error_and_leaves_no_half_file(tmp_path: Path) -> None:
    """PyTorch's writer aborts the process; so it must not write to the disk itself."""
    program = torch.export.export(torch.nn.Linear(64, 64), (torch.zeros(1, 64),))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # bytes of a file: as a full disk
    try:
        with (
            pytest.raises(OutputError, match="cannot be written: File too large"),
            written(tmp_path / "a.pt2") as partial,
        ):
            torch_program.save(program, {}, partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
