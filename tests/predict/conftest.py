"""Clips made from a real photograph (two dahlias), and a network that knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fcos.config import load_config
from fcos.data.samples import photographs
from fcos.train.run import train

FLOWERS_XYXY = np.array([[168, 83, 446, 359], [288, 374, 468, 427]])
WINDOW = (480, 360)  # width, height of what a clip shows of the photograph
SIZE = (160, 120)  # of the frames
NUM_FRAMES, RATE, SOUND_RATE = 24, 12, 16_000

MakeClip = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small lose time with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    with Image.open(photographs()[1]) as file:
        return file.convert("RGB")


def window(photograph: Image.Image, x: float, y: float) -> Image.Image:
    """What a camera sees that points there, at the size of the frames."""
    box = (x, y, x + WINDOW[0], y + WINDOW[1])
    return photograph.resize(SIZE, Image.Resampling.BILINEAR, box=box)


def flowers_at(x: float, y: float) -> NDArray[np.float64]:
    """Boxes of the flowers in such a frame, the first one always, the second while it can be seen well."""
    boxes = (FLOWERS_XYXY - [x, y, x, y]).clip(0, [*WINDOW, *WINDOW]) * (SIZE[0] / WINDOW[0])
    return boxes[boxes[:, 3] - boxes[:, 1] >= 8]


def pan(frame: int) -> tuple[float, float]:
    """Where the camera points: from left to right."""
    return 150 * frame / (NUM_FRAMES - 1), 60


@pytest.fixture(scope="session")
def frames(photograph: Image.Image) -> list[Image.Image]:
    return [window(photograph, *pan(frame)) for frame in range(NUM_FRAMES)]


def write_clip(
    path: Path,
    frames: list[Image.Image],
    *,
    codec: str = "libx264",
    sound: str | None = "aac",
    sound_rate: int = SOUND_RATE,
    times: list[float] | None = None,
    options: dict[str, str] | None = None,
    pixel_aspect: Fraction = Fraction(1),
) -> Path:
    """A video of these frames; with a tone as sound. `times` in seconds."""
    with av.open(str(path), "w", options=options or {}) as container:
        video: Any = container.add_stream(codec, rate=RATE)
        video.width, video.height, video.pix_fmt = *frames[0].size, "yuv420p"
        video.codec_context.options = {"crf": "10", "g": "6"} if codec == "libx264" else {"qscale": "2"}
        video.codec_context.time_base = Fraction(1, 1000 if times else RATE)
        video.codec_context.sample_aspect_ratio = pixel_aspect
        audio: Any = container.add_stream(sound, rate=sound_rate) if sound else None
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_image(frame)
            image.pts = round(times[number] * 1000) if times else number
            image.time_base = video.codec_context.time_base
            container.mux(video.encode(image))
            if audio:
                first = number * sound_rate // RATE
                samples = np.arange(first, (number + 1) * sound_rate // RATE)
                tone = (np.sin(samples * (2 * np.pi * 440 / sound_rate)) * 8000).astype(np.int16)
                piece = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = sound_rate, first, Fraction(1, sound_rate)
                container.mux(audio.encode(piece))
        container.mux(video.encode())
        if audio:
            container.mux(audio.encode())
    return path


@pytest.fixture(scope="session")
def clip(frames: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a pan over the photograph, with sound; its index is at its beginning."""
    return write_clip(tmp_path_factory.mktemp("clip") / "pan.mp4", frames, options={"movflags": "faststart"})


@pytest.fixture(scope="session")
def flower_detector(photograph: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of the cheapest network, trained for seconds on such views of the photograph."""
    folder = tmp_path_factory.mktemp("flowers")
    random = np.random.default_rng(0)
    lines = []
    for number in range(48):
        x, y = random.uniform([0, 0], [160, 67])
        window(photograph, x, y).save(folder / f"{number}.png")
        boxes = flowers_at(x, y)[:, [1, 0, 3, 2]]
        words = (f"{top:.1f} {left:.1f} {bottom:.1f} {right:.1f} 1" for top, left, bottom, right in boxes)
        lines.append(" ".join([f"{number}.png", *words]))
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    (folder / "names.txt").write_text("background\nflower\n")
    settings = {
        "root_train": str(folder),
        "list_train": str(folder / "train.txt"),
        "root_eval": str(folder),
        "list_eval": str(folder / "train.txt"),
        "name_file": str(folder / "names.txt"),
        "run_folder": str(folder / "run"),
        "model": "fcos_lite0",
        "backbone": "test_efficientnet",
        "pretrain": False,
        "freeze_stages": 0,
        "fpn_channels": 32,
        "head_channels": 32,
        "head_convs": 1,
        "strides": [8, 16, 32],
        "regress_ranges": [24, 48],
        "view_size": 160,
        "short_side": None,
        "nbatch_train": 8,
        "epochs": 12,
        "eval_epochs": 12,
        "warmup_iter": 0,
        "lr_base": 0.002,
        "num_workers": 0,
        "device": "cpu",
        "tensorboard": False,
        "precision": "fp32",
    }
    train(load_config(settings))
    return folder / "run" / "best.safetensors"


@pytest.fixture(scope="session")
def cut_clip(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first three fifths of its bytes, as of a copy that was broken off."""
    path = tmp_path_factory.mktemp("cut") / "cut.mp4"
    content = clip.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    return path


@pytest.fixture
def make_clip(tmp_path: Path, frames: list[Image.Image]) -> MakeClip:
    """Writes a clip below `tmp_path`: ``make_clip("a.mkv", sound=None)``."""

    def make(name: str, **arguments: Any) -> Path:
        return write_clip(tmp_path / name, arguments.pop("frames", frames), **arguments)

    return make
