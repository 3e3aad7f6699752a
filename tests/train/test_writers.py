from __future__ import annotations

import json
import math
import resource
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcos.errors import OutputError
from fcos.report.curves import read_metrics
from fcos.train.writers import JsonLines, open_writers


def written(run: Path, *entries: dict[str, Any], tensorboard: bool = False, next_step: int = 1) -> list[str]:
    """The lines of metrics.jsonl after these entries."""
    for writer in open_writers(run, next_step, tensorboard=tensorboard):
        for entry in entries:
            writer.write("train", entry)
        writer.close()
    return (run / "metrics.jsonl").read_text().splitlines()


def records(content: bytes) -> Iterator[bytes]:
    """The records of a TensorBoard file: length (8 bytes), checksum (4), record, checksum (4)."""
    while content:
        [length] = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def test_metrics_only_ever_grow(tmp_path: Path) -> None:
    first = written(tmp_path, {"step": 1, "loss": 0.5})
    assert [json.loads(line) for line in first] == [{"kind": "train", "step": 1, "loss": 0.5}]
    assert written(tmp_path, {"step": 2, "loss": 0.4})[:1] == first


def test_names_of_classes_are_written_as_they_are(tmp_path: Path) -> None:
    written(tmp_path, {"step": 1, "per_class": {"Möwe 鳥": 0.5}})
    assert "Möwe 鳥" in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    [line] = written(tmp_path, {"step": 1, "loss": math.nan, "stats": [math.inf, 1.0]})
    assert json.loads(line) == {"kind": "train", "step": 1, "loss": None, "stats": [None, 1.0]}


def test_line_that_was_cut_off_is_not_continued(tmp_path: Path) -> None:
    whole = '{"kind": "train", "step": 1, "epoch": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + '{"kind": "train", "st')
    written(tmp_path, {"step": 2, "epoch": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == whole + '{"kind":"train","step":2,"epoch":1.0}\n'
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2]


def test_full_disk_is_told(tmp_path: Path) -> None:
    metrics = JsonLines(tmp_path)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, former[1]))  # files end after 10 bytes
    try:
        with pytest.raises(OutputError, match=r"cannot be written: File too large\n  in: .*metrics\.jsonl"):
            metrics.write("train", {"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    metrics.close()


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    written(tmp_path, {"step": 3, "epoch": 0.5, "loss": 0.5, "stats": [1.0]}, tensorboard=True)
    [file] = (tmp_path / "tensorboard").iterdir()
    events = [Event.FromString(record) for record in records(file.read_bytes())]
    values = [
        (value.tag, value.simple_value, event.step) for event in events for value in event.summary.value
    ]
    assert values == [("train/loss", 0.5, 3)]
