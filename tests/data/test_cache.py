"""A cache file is used while it is right, and never when it is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcos.data import cache
from fcos.data.cache import cache_folder, cached
from fcos.data.formats import coco


class Reader:
    """Counts how often the source is read."""

    def __init__(self, source: Path) -> None:
        self.source, self.count = source, 0

    def __call__(self) -> tuple[cache.Arrays, dict[str, Any]]:
        self.count += 1
        numbers = np.array(self.source.read_text().split(), np.float64)
        arrays = {
            "numbers": numbers.reshape(-1, 2),
            "none": np.zeros((0, 4)),
            "names": np.array([b"a", b"bc"]),
        }
        return arrays, {"words": ["x", "é"]}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "MIN_BYTES", 1)
    monkeypatch.setenv("FCOS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "numbers.txt"
    file.write_text("1 2 3 4")
    return file


def files() -> list[Path]:
    return sorted(cache_folder().iterdir())


def test_the_second_opening_reads_nothing_and_gives_the_same(source: Path) -> None:
    read = Reader(source)
    for _ in range(2):
        arrays, words = cached(source, {}, read)
        assert arrays["numbers"].tolist() == [[1, 2], [3, 4]]
        assert arrays["none"].shape == (0, 4)
        assert arrays["names"].tolist() == [b"a", b"bc"]
        assert words == {"words": ["x", "é"]}
    assert read.count == 1
    assert len(files()) == 1


def test_a_changed_source_is_read_again_and_its_old_arrays_go(source: Path) -> None:
    read = Reader(source)
    old, _ = cached(source, {}, read)
    status = source.stat()
    source.write_text("5 6 7 8")  # as long as before
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # and as old, as copies can be
    new, _ = cached(source, {}, read)
    assert new["numbers"].tolist() == [[5, 6], [7, 8]]
    assert old["numbers"].tolist() == [[1, 2], [3, 4]]  # who has them open keeps them
    assert read.count == 2
    assert len(files()) == 1


def test_each_way_to_read_has_arrays_of_its_own(source: Path) -> None:
    read = Reader(source)
    for how in ({"names": None}, {"names": ["cat"]}, {"names": None}):
        cached(source, how, read)
    assert read.count == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:20],
        lambda content: b"\n" * len(content),
        lambda content: content.replace(b"<f8", b"|O8", 1),
        lambda content: content.replace(b"<f8", b"<i8", 1),
        lambda content: content.replace(b"(2, 2)", b"(9, 2)", 1),
        lambda content: content.replace(b"(2, 2)", b"(1, 2)", 1),
        lambda content: content.replace(np.float64(4).tobytes(), np.float64(5).tobytes()),
    ],
)
def test_a_damaged_file_is_written_anew(source: Path, damage: Any) -> None:
    read = Reader(source)
    cached(source, {}, read)
    [file] = files()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    assert cached(source, {}, read)[0]["numbers"].tolist() == [[1, 2], [3, 4]]
    assert read.count == 2
    cached(source, {}, read)
    assert read.count == 2


def test_no_flipped_bit_makes_other_arrays(source: Path) -> None:
    expected, expected_words = cached(source, {}, Reader(source))
    [file] = files()
    with file.open("rb") as opened, np.load(opened) as arrays:
        state = json.loads(str(arrays["head"]))[0]
    assert cache._load(file, state) is not None
    content = file.read_bytes()
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        if (
            found := cache._load(file, state)
        ) is not None:  # of most bits of a zip's directory nothing depends
            assert found[0].keys() == expected.keys()
            assert all(np.array_equal(found[0][name], expected[name]) for name in expected)
            assert found[1] == expected_words


def test_without_a_place_for_it_there_is_no_cache(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCOS_CACHE", str(source / "folder"))  # below a file
    read = Reader(source)
    assert cached(source, {}, read)[0]["numbers"].tolist() == [[1, 2], [3, 4]]


def test_an_interrupted_writing_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(old: str, new: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    assert cached(source, {}, Reader(source))[0]["numbers"].tolist() == [[1, 2], [3, 4]]
    assert files() == []


def test_small_files_leave_nothing_behind(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIN_BYTES", 1000)
    cached(source, {}, Reader(source))
    assert not cache_folder().exists()


def test_coco_from_the_cache_is_coco_from_the_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "images": [{"id": 4, "file_name": "b.jpg"}, {"id": 2, "file_name": "a.jpg", "height": 5, "width": 6}],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 9, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 9, "name": "cat"}],
    }
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    first = list(coco.read(file, root=tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(coco, "_arrays", None)  # not asked
        again = coco.read(file, root=tmp_path)
    assert again.class_names == ("cat",)
    assert [str(record) for record in again] == [str(record) for record in first]
    assert again[1].boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    assert again[0].path == tmp_path / "b.jpg"
    assert again[0].where == f"{file}, image 4"
