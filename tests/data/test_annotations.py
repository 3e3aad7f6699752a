"""Names of images are kept as they are, and cannot fill the memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fcos.data.annotations import MAX_NAME_BYTES, Annotations, Record, pack_names, unpack_name
from fcos.errors import DatasetError


def test_names_that_are_no_utf_8_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9.jpg")  # of an old file system
    records = [Record.make(tmp_path / name, [], [], 1, where=f"{name}, line 1")]
    annotations = Annotations.from_records(records, [], source=tmp_path, format="list")

    assert annotations[0].path == tmp_path / name
    assert annotations[0].where == f"{name}, line 1"


def test_one_long_name_does_not_widen_a_million_others() -> None:
    names = ["a.jpg"] * 300_000

    assert pack_names(names, Path("x")).itemsize == 5
    assert unpack_name(pack_names(["x" * MAX_NAME_BYTES], Path("x"))[0]) == "x" * MAX_NAME_BYTES
    with pytest.raises(DatasetError, match=r"the name of image 300001, .*, is not a valid file name"):
        pack_names([*names, "x" * (MAX_NAME_BYTES + 1)], Path("x"))
    with pytest.raises(DatasetError, match="the names of the images are too long"):
        pack_names([*names, "x" * MAX_NAME_BYTES], Path("x"))
