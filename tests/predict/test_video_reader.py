"""Frames as a player shows them, of whole and of broken files."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fcos.errors import DatasetError, FcosError
from fcos.predict import video_reader
from fcos.predict.video_reader import VideoReader

from .conftest import NUM_FRAMES, RATE, SIZE, SOUND_RATE, MakeClip


def pixels(frame: Any) -> NDArray[np.uint8]:
    return frame.pixels().permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


def read_all(path: Path) -> tuple[list[Any], VideoReader]:
    with VideoReader(str(path)) as reader:
        return list(reader.frames()), reader


def turn_in_file(clip: Path, target: Path, quarter_turns_clockwise: int) -> Path:
    """A clip whose header asks players to turn it, as phones write it (ISO 14496-12, track header)."""
    a, b = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns_clockwise]
    content = bytearray(clip.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version and times, duration, layer, group, volume come first
    unit, last = 1 << 16, 1 << 30
    assert struct.unpack_from(">9i", content, start) == (unit, 0, 0, 0, unit, 0, 0, 0, last)
    struct.pack_into(">9i", content, start, a * unit, b * unit, 0, -b * unit, a * unit, 0, 0, 0, last)
    target.write_bytes(content)
    return target


def test_every_frame_comes_once_with_its_time(clip: Path, frames: list[Image.Image]) -> None:
    sound: list[float] = []
    with VideoReader(str(clip)) as reader:
        found = list(reader.frames(lambda packet: sound.append(packet.duration / SOUND_RATE)))

    assert [frame.index for frame in found] == list(range(NUM_FRAMES))
    assert [frame.time_s for frame in found] == pytest.approx([n / RATE for n in range(NUM_FRAMES)])
    assert (reader.num_frames, reader.frame_rate) == (NUM_FRAMES, RATE)
    assert (reader.num_damaged, reader.problem) == (0, "")
    assert sum(sound) == pytest.approx(NUM_FRAMES / RATE, abs=0.1)
    for frame, original in zip(found, frames, strict=True):  # lossy, and in the right order
        assert np.abs(pixels(frame) - np.asarray(original, np.float64)).mean() < 4


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mov", "clip.avi", "clip.ts"])
def test_other_containers(make_clip: MakeClip, name: str) -> None:
    found, reader = read_all(make_clip(name, codec="mpeg4", sound="mp2" if name == "clip.avi" else "aac"))

    assert len(found) == NUM_FRAMES
    assert reader.problem == ""
    steps = np.diff([frame.time_s for frame in found])
    assert steps == pytest.approx(np.full(NUM_FRAMES - 1, 1 / RATE), abs=2e-3)
    assert 0 <= found[0].time_s < 0.1  # MPEG-TS begins at 1.4 s, which players show as 0


def test_frames_of_different_length_keep_their_times(make_clip: MakeClip, frames: list[Image.Image]) -> None:
    times = [0.0, 0.04, 0.5, 0.54, 2.0]
    found, reader = read_all(make_clip("vfr.mp4", frames=frames[:5], times=times, sound=None))

    assert [frame.time_s for frame in found] == pytest.approx(times, abs=1e-3)
    assert reader.problem == ""


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_video_of_a_phone_is_turned_upright(clip: Path, tmp_path: Path, quarter_turns: int) -> None:
    turned, _ = read_all(turn_in_file(clip, tmp_path / "phone.mp4", quarter_turns))
    stored, _ = read_all(clip)

    assert len(turned) == NUM_FRAMES
    assert pixels(turned[0]).shape[:2] == (SIZE if quarter_turns % 2 else SIZE[::-1])
    for frame, original in zip(turned[::8], stored[::8], strict=True):
        assert np.array_equal(pixels(frame), np.rot90(pixels(original), -quarter_turns))


def test_of_a_file_that_is_cut_off_the_frames_before_are_kept(clip: Path, cut_clip: Path) -> None:
    found, reader = read_all(cut_clip)
    whole, _ = read_all(clip)

    assert NUM_FRAMES // 4 < len(found) < NUM_FRAMES
    assert "before its stated end" in reader.problem
    assert np.array_equal(pixels(found[4]), pixels(whole[4]))


def test_a_recording_without_its_index_says_so(make_clip: MakeClip) -> None:
    path = make_clip("unfinished.mp4")  # the index comes last
    path.write_bytes(path.read_bytes()[:-8000])

    with pytest.raises(DatasetError, match=r"the video cannot be opened: [\s\S]*unfinished\.mp4") as error:
        VideoReader(str(path))
    assert "a recording interrupted before its index was written" in str(error.value)


def test_damage_in_the_middle_costs_only_the_frames_there(make_clip: MakeClip) -> None:
    path = make_clip("damaged.ts", codec="libx264", sound=None)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)

    found, reader = read_all(path)

    assert NUM_FRAMES // 2 < len(found) <= NUM_FRAMES
    assert reader.num_damaged > 0
    times = [frame.time_s for frame in found]
    assert times == sorted(set(times))


def test_what_is_no_video_is_refused_in_words(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(DatasetError, match=r"the video cannot be opened: .*\n  in: .*text\.mp4"):
        VideoReader(str(text))
    with pytest.raises(DatasetError, match=r"cannot be read: No such file.*\n  in: .*missing\.mp4"):
        VideoReader(str(tmp_path / "missing.mp4"))


def test_a_file_with_sound_only_holds_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=SOUND_RATE)
        piece = av.AudioFrame.from_ndarray(np.zeros((1, SOUND_RATE), np.int16), format="s16", layout="mono")
        piece.sample_rate = SOUND_RATE
        container.mux([*stream.encode(piece), *stream.encode(None)])

    with pytest.raises(DatasetError, match=r"the file contains no video\n  in: .*sound\.mp4"):
        VideoReader(str(path))


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        cover, film = container.add_stream("mjpeg", rate=1), container.add_stream("mpeg4", rate=10)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        film.width, film.height, film.pix_fmt = 48, 32, "yuv420p"
        for stream, num_frames in ((cover, 1), (film, 4)):
            picture = av.VideoFrame.from_ndarray(
                np.zeros((stream.height, stream.width, 3), np.uint8), format="rgb24"
            )
            for _ in range(num_frames):
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))

    frames, _ = read_all(path)
    assert [pixels(frame).shape[:2] for frame in frames] == [(32, 48)] * 4


def test_a_missing_library_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(FcosError, match=r"a video needs av\n  fix: pip install 'fcos-torch\[video\]'"):
        VideoReader(str(clip))


@pytest.mark.skipif(sys.platform != "linux", reason="cameras have other names elsewhere")
def test_a_camera_that_is_not_there_is_an_error_in_words() -> None:
    with pytest.raises(DatasetError, match=r"camera 97 cannot be opened: No such file.*\n  in: /dev/video97"):
        VideoReader("97", camera=True)


def test_a_system_whose_cameras_are_not_read_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(FcosError, match="cameras are not supported on win32\n  fix: record a video"):
        VideoReader("0", camera=True)


def test_frames_of_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ffmpeg's test image, which it reads as it reads a camera: there is none in a test."""
    image = "testsrc=size=64x48:rate=10:duration=0.5"
    monkeypatch.setitem(video_reader.CAMERAS, sys.platform, (image + "{:.0s}", "lavfi"))

    with VideoReader("0", camera=True) as reader:
        found = list(reader.frames())

    assert reader.where == "camera 0"
    assert [frame.time_s for frame in found] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert pixels(found[0]).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("late.mkv", "libx264"), ("late.mp4", "libx264"), ("late.nut", "mpeg4"), ("late.wmv", "wmv2")],
)
def test_a_recording_that_starts_late_is_whole_and_begins_at_zero(
    make_clip: MakeClip, name: str, codec: str
) -> None:
    times = [3 + number / RATE for number in range(NUM_FRAMES)]
    options = {"avoid_negative_ts": "disabled"}

    path = make_clip(name, codec=codec, sound=None, times=times, options=options)
    found, reader = read_all(path)

    assert (reader.num_damaged, reader.problem, len(found)) == (0, "", NUM_FRAMES)
    assert [frame.time_s for frame in found] == pytest.approx([t - 3 for t in times], abs=2e-3)
    assert reader.duration_s == pytest.approx(NUM_FRAMES / RATE, abs=0.1)
    if name.endswith("mkv"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
        found, reader = read_all(path)
        assert "before its stated end" in reader.problem
        assert 0 < len(found) < NUM_FRAMES
