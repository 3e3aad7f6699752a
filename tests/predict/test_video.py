"""`fcos predict clip.mp4` as a user types it."""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from fcos import Detections, Detector
from fcos.cli import main
from fcos.predict import video_reader
from fcos.predict.video_reader import VideoReader
from fcos.predict.video_writer import VideoWriter

from .conftest import NUM_FRAMES, RATE, MakeClip, flowers_at, pan


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predict(model: Path, *words: str | Path) -> Result:
    return CliRunner().invoke(main, ["predict", str(model), *map(str, words), "--device", "cpu"])


def lines(out: str = "predictions") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "detections.jsonl").read_text("utf-8").splitlines()]


def summary(out: str = "predictions") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(out, "detections.json").read_text("utf-8"))
    return content


def times_of(path: str | Path) -> list[float]:
    with VideoReader(str(path)) as reader:
        found = [frame.time_s for frame in reader.frames()]
        assert reader.problem == ""
        return found


def test_a_line_a_frame_says_what_predicting_the_frame_gives(model_file: Path, clip: Path) -> None:
    result = predict(model_file, clip, "--score-threshold", "0.55")

    assert result.exit_code == 0, result.output
    detector = Detector.load(model_file, "cpu")
    with VideoReader(str(clip)) as reader:
        frames = list(reader.frames())
    written = lines()
    assert [line["frame"] for line in written] == list(range(NUM_FRAMES))
    times = [n / RATE for n in range(NUM_FRAMES)]
    assert [line["time_s"] for line in written] == pytest.approx(times, abs=1e-5)
    for line, frame in zip(written, frames, strict=True):
        found = detector.predict(frame.pixels(), 0.55)
        entries = line["detections"]
        assert len(entries) == len(found) > 0
        boxes = torch.tensor([entry["box_xyxy"] for entry in entries])
        torch.testing.assert_close(boxes, found.boxes_xyxy, rtol=0, atol=0.02)
        assert [entry["score"] for entry in entries] == pytest.approx(found.scores.tolist(), abs=1e-4)
        assert [entry["label"] for entry in entries] == found.labels.tolist()
        assert (line["path"], line["width"], line["height"]) == (str(clip), 160, 120)
    num_detections = sum(len(line["detections"]) for line in written)
    [about] = summary()["videos"]
    assert (about["num_frames"], about["num_detections"]) == (NUM_FRAMES, num_detections)
    assert f"{NUM_FRAMES} frames, {num_detections} detections, " in result.output


def test_the_drawn_video_has_boxes_times_and_sound(model_file: Path, clip: Path) -> None:
    import av

    predict(model_file, clip)

    drawn = Path("predictions/pan.mp4")
    assert times_of(drawn) == pytest.approx(times_of(clip), abs=1e-3)
    with VideoReader(str(clip)) as before, VideoReader(str(drawn)) as after:
        [original], [marked] = ([next(iter(reader.frames())).pixels().float()] for reader in (before, after))
    assert (original - marked).abs().mean() > 5
    with av.open(str(clip)) as before, av.open(str(drawn)) as after:
        parts = [
            [bytes(packet) for packet in container.demux(audio=0) if packet.size]
            for container in (before, after)
        ]
    assert len(parts[0]) > 20
    assert parts[0] == parts[1]


def test_tracks_follow_a_flower_over_the_pan(flower_detector: Path, clip: Path) -> None:
    result = predict(flower_detector, clip, "--track", "--score-threshold", "0.6")

    assert result.exit_code == 0, result.output
    found = [line["detections"] for line in lines()]
    assert [entry["track_id"] for entry in found[0]] == [None]
    assert [[entry["track_id"] for entry in frame] for frame in found[1:]] == [[1]] * (NUM_FRAMES - 1)
    for number, [entry] in enumerate(found):
        assert entry["box_xyxy"] == pytest.approx(flowers_at(*pan(number))[0].tolist(), abs=14)
    assert summary()["videos"][0]["num_tracks"] == 1
    assert ", 1 track, " in result.output


def test_boxes_are_in_the_pixels_of_their_own_frame_and_all_are_drawn_in_the_size_of_the_first(
    model_file: Path, make_clip: MakeClip, frames: list[Image.Image]
) -> None:
    """Two recordings in one file, as of a camera whose resolution was changed: 160 x 120, then 240 x 240."""
    small, large = frames[:3], [frame.resize((240, 240)) for frame in frames[3:6]]
    recordings = [
        make_clip("small.ts", frames=small, times=[n / RATE for n in range(3)], sound=None),
        make_clip("large.ts", frames=large, times=[n / RATE for n in range(3, 6)], sound=None),
    ]
    Path("both.mts").write_bytes(b"".join(path.read_bytes() for path in recordings))

    result = predict(model_file, "both.mts", "--score-threshold", "0.3")

    assert result.exit_code == 0, result.output
    assert "resized: both.mts: 3 drawn frames, to the size of the first one\n" in result.stderr
    assert [(line["width"], line["height"]) for line in lines()] == [(160, 120)] * 3 + [(240, 240)] * 3
    detector = Detector.load(model_file, "cpu")
    with VideoReader("both.mts") as reader:
        for line, frame in zip(lines(), reader.frames(), strict=True):
            boxes = [entry["box_xyxy"] for entry in line["detections"]]
            wanted = detector.predict(frame.pixels(), 0.3).boxes_xyxy
            torch.testing.assert_close(torch.tensor(boxes), wanted, rtol=0, atol=0.02)
    with VideoReader("predictions/both.mp4") as reader:
        assert {tuple(frame.pixels().shape) for frame in reader.frames()} == {(3, 120, 160)}
    assert summary()["videos"][0]["num_resized"] == 3


def test_each_nth_frame(model_file: Path, clip: Path) -> None:
    predict(model_file, clip, "--every", "5", "--track")

    assert [line["frame"] for line in lines()] == [0, 5, 10, 15, 20]
    assert times_of("predictions/pan.mp4") == pytest.approx([n / RATE for n in (0, 5, 10, 15, 20)], abs=1e-3)


def test_json_is_all_that_standard_output_holds(model_file: Path, clip: Path) -> None:
    result = predict(model_file, clip, "--json", "--no-draw", "--every", "12")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == summary()
    assert summary()["videos"][0]["drawn"] is None
    assert sorted(path.name for path in Path("predictions").iterdir()) == [
        ".fcos-predict",
        "detections.json",
        "detections.jsonl",
    ]


def test_a_video_that_is_cut_off_is_searched_to_where_it_goes(model_file: Path, cut_clip: Path) -> None:
    result = predict(model_file, cut_clip, "--every", "3")

    assert result.exit_code == 1
    assert "before its stated end" in result.stderr
    assert "1 of 1 video could not be read in full: " in result.stderr
    num_lines = len(lines())
    assert 2 < num_lines < NUM_FRAMES // 3
    assert len(times_of("predictions/cut.mp4")) == num_lines
    assert summary()["failed"] == [{"path": str(cut_clip), "error": summary()["videos"][0]["error"]}]


def test_a_folder_of_images_and_videos_whole_and_broken(
    model_file: Path, clip: Path, frames: list[Image.Image]
) -> None:
    Path("mixed/sub").mkdir(parents=True)
    frames[0].save("mixed/sub/pan.png")
    Path("mixed/pan.mp4").write_bytes(clip.read_bytes())
    Path("mixed/sub/pan.mkv").write_bytes(b"no video")

    result = predict(model_file, "mixed", "--every", "8")

    assert result.exit_code == 1
    assert "skipped: mixed/sub/pan.mkv: the video cannot be opened" in result.stderr
    assert "1 of 3 images and videos could not be read in full: " in result.stderr
    content = summary()
    assert [image["drawn"] for image in content["images"]] == ["predictions/sub/pan.png"]
    assert [video["drawn"] for video in content["videos"]] == ["predictions/pan.mp4"]
    assert {line["path"] for line in lines()} == {"mixed/pan.mp4"}
    assert predict(model_file, "mixed/pan.mp4", "--every", "8").exit_code == 0  # over what it wrote itself


def test_a_video_is_never_overwritten(model_file: Path, clip: Path) -> None:
    Path("pan.mp4").write_bytes(clip.read_bytes())

    result = predict(model_file, "pan.mp4", "--out", ".")

    assert result.exit_code == 2
    assert "a video would be overwritten by the drawn copy" in result.stderr
    assert Path("pan.mp4").read_bytes() == clip.read_bytes()


def test_ctrl_c_leaves_a_whole_video_and_whole_lines(
    model_file: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = VideoWriter.write, 0

    def write_and_interrupt(self: VideoWriter, *args: Any) -> None:
        nonlocal written
        write(self, *args)
        written += 1
        if written == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(VideoWriter, "write", write_and_interrupt)
    result = predict(model_file, clip, clip.parent)

    assert result.exit_code == 130
    assert len(lines()) == len(times_of("predictions/pan.mp4")) == 7
    [about] = summary()["videos"]
    assert about["stopped"]
    assert "error" not in about
    assert "stopped early" in result.output


@pytest.fixture
def address(clip: Path, frames: list[Image.Image]) -> Iterator[str]:
    """A server of the clip's folder, with an image in it."""
    frames[0].save(clip.parent / "frame.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(clip.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    (clip.parent / "frame.png").unlink()


def test_images_and_videos_at_an_address(model_file: Path, address: str, frames: list[Image.Image]) -> None:
    words = [f"{address}/frame.png", f"{address}/missing.png", f"{address}/pan.mp4"]
    result = predict(model_file, *words, "--every", "12")

    assert result.exit_code == 1
    content = summary()
    [image] = content["images"]
    assert (image["path"], image["drawn"]) == (words[0], "predictions/frame.png")
    assert len(image["detections"]) == len(Detector.load(model_file, "cpu").predict(frames[0]))
    assert content["failed"] == [{"path": words[1], "error": "the server returned 404 File not found"}]
    assert [video["num_frames"] for video in content["videos"]] == [2]


def test_a_camera_is_searched_until_it_ends(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg's test image stands for one; see test_video_reader.py."""
    image = "testsrc=size=64x48:rate=10:duration=0.5"
    monkeypatch.setitem(video_reader.CAMERAS, sys.platform, (image + "{:.0s}", "lavfi"))

    result = predict(model_file, "0")

    assert result.exit_code == 0, result.output
    assert len(lines()) == len(times_of("predictions/camera_0.mp4")) == 5


def test_without_the_library_it_says_so_before_it_starts(
    model_file: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    result = predict(model_file, clip)

    assert result.exit_code == 2
    assert "a video needs av\n  fix: pip install 'fcos-torch[video]'" in result.stderr
    assert not Path("predictions").exists()


def test_a_missing_tracker_is_named_before_it_starts(
    model_file: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)

    result = predict(model_file, clip, "--track")

    assert result.exit_code == 2
    assert "tracking needs trackers" in result.stderr
    assert not Path("predictions").exists()


@pytest.mark.parametrize("words", [["--track"], ["--every", "2"]])
def test_what_is_for_videos_is_refused_where_there_is_none(
    model_file: Path, frames: list[Image.Image], words: list[str]
) -> None:
    frames[0].save("frame.png")

    result = predict(model_file, "frame.png", *words)

    assert result.exit_code == 2
    assert f"{words[0]} works on videos, but no source is a video" in result.stderr


def test_an_image_from_standard_input(model_file: Path, frames: list[Image.Image]) -> None:
    frames[0].save("frame.png")
    content = Path("frame.png").read_bytes()
    words = ["predict", str(model_file), "-", "--device", "cpu"]

    result = CliRunner().invoke(main, words, input=content)

    assert result.exit_code == 0, result.output
    [image] = summary()["images"]
    assert (image["path"], image["drawn"]) == ("standard input", "predictions/standard_input.png")
    found = Detector.load(model_file, "cpu").predict("frame.png")
    assert isinstance(found, Detections)
    assert len(image["detections"]) == len(found)
