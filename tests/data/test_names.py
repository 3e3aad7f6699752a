"""Class names: what no class can be called, and how many there may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcos.data.names import MAX_CLASSES, numbered_names, read_all_names, read_names, write_names
from fcos.errors import DatasetError


def test_in_yolo_background_is_a_class_like_others(tmp_path: Path) -> None:
    (tmp_path / "obj.names").write_text("background\ncat\n")

    assert read_all_names(tmp_path / "obj.names") == ["background", "cat"]
    assert read_names(tmp_path / "obj.names") == (("cat",), True)


def test_a_class_called_background_is_written_and_read_back(tmp_path: Path) -> None:
    write_names(("background", "cat"), tmp_path / "names.txt")

    assert read_names(tmp_path / "names.txt") == (("background", "cat"), True)


@pytest.mark.parametrize("content", ["cat\u2028dog\nemu\n", "cat\x0cdog\nemu\n"])
def test_only_line_breaks_end_a_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.txt").write_text(content)

    assert len(read_names(tmp_path / "names.txt")[0]) == 2


def test_names_in_another_code_page_are_refused_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("schräg\n".encode("latin-1"))

    with pytest.raises(
        DatasetError, match=r"not a UTF-8 text file\n  in: .*names.txt\n  fix: save it as UTF-8"
    ):
        read_names(tmp_path / "names.txt")


def test_a_name_of_a_megabyte_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("x" * 2**20)

    with pytest.raises(DatasetError, match="line 1: the name has 1,048,576 characters; at most 1,000"):
        read_names(tmp_path / "names.txt")


def test_a_slip_in_one_id_does_not_make_names_by_the_billion() -> None:
    with pytest.raises(DatasetError, match="4,294,967,296 classes; at most 65,536 can be used"):
        numbered_names([2**32 - 1], 1, "train.txt")
    assert len(numbered_names([MAX_CLASSES - 1], 0, "train.txt")) == MAX_CLASSES
