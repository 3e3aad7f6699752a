"""Live streams: the newest frame, over broken connections."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner

from fcos import Detector
from fcos.cli import main
from fcos.errors import DatasetError
from fcos.predict import live
from fcos.predict.live import LiveReader
from fcos.predict.sources import find_sources
from fcos.predict.video import VideoOptions, predict_video

from .conftest import NUM_FRAMES, MakeClip


class Camera:
    """A server that sends a clip over each of `num_connections`, and then refuses.

    Attributes:
        address: of the stream.
        num_answers: connections that got the clip.
        is_silent: send the clip, and keep the connection open without a byte.
    """

    def __init__(self, content: bytes, num_connections: int) -> None:
        self.num_answers, self.is_silent = 0, False
        camera, done = self, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if camera.num_answers >= num_connections:
                    self.send_error(503)
                    return
                camera.num_answers += 1
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()
                if camera.is_silent:
                    done.wait(30)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.done = done
        self.address = f"http://user:secret@127.0.0.1:{self.server.server_port}/live"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.done.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def camera(make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    """Two connections of a clip each; the reader soon gives up."""
    monkeypatch.setattr(live, "PATIENCE_S", 0.3)
    monkeypatch.setattr(live, "WAIT_S", 0.05)
    camera = Camera(make_clip("clip.ts", sound=None).read_bytes(), num_connections=2)
    yield camera
    camera.close()


def test_a_stream_continues_over_a_new_connection(camera: Camera) -> None:
    with LiveReader(camera.address) as reader:
        frames = list(reader.frames())

    assert camera.num_answers == 2
    assert reader.num_reconnects == 1
    assert reader.problem.startswith("the stream ended, and reconnecting failed for ")
    assert "503" in reader.problem or "5XX" in reader.problem
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert indices[-1] == 2 * NUM_FRAMES - 1
    times = [frame.time_s for frame in frames]
    assert times == sorted(times)
    assert [frame.pts for frame in frames] == sorted({frame.pts for frame in frames})
    assert frames[-1].pixels().shape == (3, 120, 160)


def test_frames_that_come_while_the_caller_is_busy_are_skipped(camera: Camera) -> None:
    with LiveReader(camera.address) as reader:
        frames = reader.frames()
        first = next(frames)
        while reader.num_reconnects == 0 and not reader.problem:
            time.sleep(0.02)
        time.sleep(0.5)
        rest = list(frames)

    assert len(rest) <= 2
    assert first.index < rest[-1].index == 2 * NUM_FRAMES - 1


def test_a_silent_stream_can_be_stopped(camera: Camera) -> None:
    camera.is_silent = True
    stopped = threading.Event()
    threading.Timer(1.0, stopped.set).start()

    started_at = time.monotonic()
    with LiveReader(camera.address, stopped.is_set) as reader:
        frames = list(reader.frames())

    assert time.monotonic() - started_at < 10  # the silence lasts 30 s
    assert reader.problem == ""
    assert len(frames) >= 1


def test_a_stream_that_cannot_be_opened_is_an_error_without_its_password(camera: Camera) -> None:
    camera.num_answers = 2
    with pytest.raises(DatasetError, match="the video cannot be opened") as error:
        LiveReader(camera.address)
    assert "secret" not in str(error.value)


def test_predict_writes_a_stream_as_a_video(
    model_file: Path, camera: Camera, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["predict", str(model_file), camera.address, "--stream", "--device", "cpu"]
    result = CliRunner().invoke(main, words)

    assert result.exit_code == 1
    assert "broken: http://127.0.0.1:" in result.output
    assert "secret" not in result.output
    [about] = json.loads(Path("predictions/detections.json").read_text())["videos"]
    assert about["num_reconnects"] == 1
    assert about["drawn"] == "predictions/live.mp4"
    assert Path("predictions/live.mp4").stat().st_size > 1000
    lines = [json.loads(line) for line in Path("predictions/detections.jsonl").read_text().splitlines()]
    assert lines[-1]["frame"] == 2 * NUM_FRAMES - 1
    assert len(lines) == about["num_frames"]


def test_a_stream_that_is_stopped_while_it_is_silent_counts_as_stopped(
    model_file: Path, camera: Camera, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    camera.is_silent = True
    stopped = threading.Event()
    [source] = find_sources([camera.address], tmp_path, streams=True)
    options = VideoOptions(0.5, draw=False, is_stopped=stopped.is_set)

    def stop_soon(num_frames: int | None) -> AbstractContextManager[Callable[[int], None]]:
        threading.Timer(3.0, stopped.set).start()
        return nullcontext(lambda done: None)

    detector = Detector.load(model_file, "cpu")
    with (tmp_path / "frames.jsonl").open("w") as lines:
        about = predict_video(detector, source, tmp_path / "live.mp4", lines, options, stop_soon)

    assert about["stopped"]
    assert about["num_frames"] >= 1
    assert about["num_reconnects"] == 0
    assert "error" not in about


@pytest.mark.parametrize(
    ("word", "streams", "kind", "name"),
    [
        ("rtsp://user:secret@camera.local/live", False, "stream", "live"),
        ("rtmp://camera.local/", False, "stream", "image"),
        ("http://camera.local/a.m3u8", False, "stream", "a.m3u8"),
        ("http://camera.local/video", True, "stream", "video"),
        ("http://camera.local/video", False, "image", "video"),
        ("http://camera.local/a.mp4", False, "video", "a.mp4"),
    ],
)
def test_which_addresses_are_streams(word: str, streams: bool, kind: str, name: str) -> None:
    [source] = find_sources([word], Path("out"), streams=streams)

    assert (source.kind, source.name, source.path) == (kind, Path(name), None)
    assert source.address == word
    assert "secret" not in source.where


def test_an_error_while_receiving_ends_the_stream(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = LiveReader(str(make_clip("clip.mp4")), lambda: False)
    monkeypatch.setattr(reader, "_receive", mock.Mock(side_effect=MemoryError("full")))
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    assert list(reader.frames()) == []
    assert reader.problem == "receiving the stream failed: MemoryError('full')"
