"""Drawn videos have the times and the sound of the original."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fcos.predict.video_reader import Frame, VideoReader
from fcos.predict.video_writer import VideoWriter

from .conftest import NUM_FRAMES, RATE, SIZE, MakeClip
from .test_video_reader import turn_in_file


def rewrite(source: Path, target: Path) -> None:
    with (
        VideoReader(str(source)) as reader,
        VideoWriter(target, reader.frame_rate, reader.time_base, reader.audio, reader.pixel_aspect) as writer,
    ):
        for frame in reader.frames(writer.write_audio):
            writer.write(frame, Image.fromarray(frame.pixels().permute(1, 2, 0).numpy()))


def sound_of(path: Path) -> tuple[str, list[tuple[float, str]]]:
    """Codec, and time and content of each part of the sound."""
    with av.open(str(path)) as container:
        [stream] = container.streams.audio
        parts = [
            (float(packet.pts * packet.time_base), hashlib.sha256(bytes(packet)).hexdigest())
            for packet in container.demux(stream)
            if packet.pts is not None and packet.time_base is not None
        ]
        return stream.codec_context.name, parts


def test_frames_keep_their_content_and_times(
    make_clip: MakeClip, frames: list[Image.Image], tmp_path: Path
) -> None:
    times = [n / RATE + (1.5 if n >= 10 else 0) for n in range(NUM_FRAMES)]
    source = make_clip("source.mp4", times=times, sound=None)

    rewrite(source, tmp_path / "drawn.mp4")

    with VideoReader(str(tmp_path / "drawn.mp4")) as reader:
        found = list(reader.frames())
    with av.open(str(tmp_path / "drawn.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert [frame.time_s for frame in found] == pytest.approx(times, abs=1e-3)
    for frame, original in zip(found, frames, strict=True):
        difference = frame.pixels().permute(1, 2, 0).numpy() - np.asarray(original, np.float64)
        assert np.abs(difference).mean() < 8


@pytest.mark.parametrize(("name", "sound"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.ts", "mp2")])
def test_sound_is_kept(make_clip: MakeClip, tmp_path: Path, name: str, sound: str) -> None:
    if sound == "libopus" and sound not in av.codecs_available:
        pytest.skip("this build of ffmpeg cannot write Opus")
    rates = {"libopus": 48_000, "mp2": 16_000}
    source = make_clip(name, sound=sound, sound_rate=rates.get(sound, 16_000))

    rewrite(source, tmp_path / "drawn.mp4")

    codec, before = sound_of(source)
    new_codec, after = sound_of(tmp_path / "drawn.mp4")
    if codec in ("aac", "opus"):
        assert [digest for _, digest in after] == [digest for _, digest in before]
        assert new_codec == codec
    else:
        assert new_codec == "aac"
    lengths = [sound[-1][0] - sound[0][0] for sound in (before, after)]
    assert lengths[1] == pytest.approx(lengths[0], abs=0.15)
    with VideoReader(str(tmp_path / "drawn.mp4")) as reader:
        assert len(list(reader.frames())) == NUM_FRAMES
        assert reader.problem == ""


def test_an_odd_last_row_and_column_are_left_out(tmp_path: Path) -> None:
    image = Image.new("RGB", (33, 21), (200, 30, 30))
    with VideoWriter(tmp_path / "odd.mp4", Fraction(10), Fraction(1, 10)) as writer:
        for number in range(3):
            frame = Frame(number, number / 10, number, av.VideoFrame.from_image(image))
            writer.write(frame, image)

    with VideoReader(str(tmp_path / "odd.mp4")) as reader:
        found = list(reader.frames())
    assert [tuple(frame.pixels().shape) for frame in found] == [(3, 20, 32)] * 3
    assert found[0].pixels().float().mean(dim=(1, 2)).tolist() == pytest.approx([200, 30, 30], abs=8)


def test_frames_of_another_size_are_fitted_into_the_first_with_a_border(tmp_path: Path) -> None:
    red, green, border = (200, 30, 30), (30, 200, 30), (0, 0, 0)
    images = [
        Image.new("RGB", (160, 80), red),
        Image.new("RGB", (40, 40), green),  # becomes 80 x 80: 40 columns on either side remain
        Image.new("RGB", (320, 320), green),  # the same
        Image.new("RGB", (320, 80), green),  # becomes 160 x 40: 20 rows above and below
        Image.new("RGB", (320, 160), green),  # of the same shape: no border
        Image.new("RGB", (160, 80), red),
    ]
    with VideoWriter(tmp_path / "a.mp4", Fraction(10), Fraction(1, 10)) as writer:
        for number, image in enumerate(images):
            writer.write(Frame(number, number / 10, number, av.VideoFrame.from_image(image)), image)

    assert writer.num_resized == 4
    with VideoReader(str(tmp_path / "a.mp4")) as reader:
        found = [frame.pixels() for frame in reader.frames()]
    assert [tuple(pixels.shape) for pixels in found] == [(3, 80, 160)] * 6

    def color(frame: int, rows: slice, columns: slice) -> list[float]:
        return found[frame][:, rows, columns].float().mean(dim=(1, 2)).tolist()

    everything = slice(None)
    for frame in (1, 2):
        assert color(frame, everything, slice(44, 116)) == pytest.approx(green, abs=10)
        assert color(frame, everything, slice(0, 36)) == pytest.approx(border, abs=10)
        assert color(frame, everything, slice(124, 160)) == pytest.approx(border, abs=10)
    assert color(3, slice(24, 56), everything) == pytest.approx(green, abs=10)
    assert color(3, slice(0, 16), everything) == pytest.approx(border, abs=10)
    assert color(3, slice(64, 80), everything) == pytest.approx(border, abs=10)
    assert color(4, everything, everything) == pytest.approx(green, abs=10)
    for frame in (0, 5):
        assert color(frame, everything, everything) == pytest.approx(red, abs=10)


@pytest.mark.parametrize(("quarter_turns", "expected"), [(0, (4, 3)), (1, (3, 4)), (2, (4, 3)), (3, (3, 4))])
def test_pixels_that_are_not_square_stay_so(
    make_clip: MakeClip, tmp_path: Path, quarter_turns: int, expected: tuple[int, int]
) -> None:
    clip = make_clip("wide.mp4", pixel_aspect=Fraction(4, 3))
    source = turn_in_file(clip, tmp_path / "turned.mp4", quarter_turns)

    rewrite(source, tmp_path / "drawn.mp4")

    with VideoReader(str(tmp_path / "drawn.mp4")) as reader:
        assert reader.pixel_aspect == Fraction(*expected)
        frame = next(iter(reader.frames()))
    assert tuple(frame.pixels().shape[1:]) == (SIZE if quarter_turns % 2 else SIZE[::-1])


def test_without_a_frame_there_is_no_file(clip: Path, tmp_path: Path) -> None:
    with (
        VideoReader(str(clip)) as reader,
        VideoWriter(tmp_path / "none.mp4", Fraction(10), Fraction(1, 10), reader.audio),
    ):
        pass

    assert not (tmp_path / "none.mp4").exists()


def test_the_original_size_is_kept(clip: Path, tmp_path: Path) -> None:
    rewrite(clip, tmp_path / "drawn.mp4")

    with VideoReader(str(tmp_path / "drawn.mp4")) as reader:
        frame = next(iter(reader.frames()))
    assert tuple(frame.pixels().shape) == (3, SIZE[1], SIZE[0])
