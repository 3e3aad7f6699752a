"""Images a second on a folder, drawn and saved: a loop over single images against what overlaps.

    python benchmarks/predict_folder.py --model MODEL --folder ../shared/data/bccd/JPEGImages --number 300

Three ways in turn, `--rounds` times, medians:

- loop: ``for path in folder: detector.predict(path).draw().save(...)``
- stream: the same with ``for detections in detector.stream(folder)``
- command: what `fcos predict` runs, drawing in its threads or processes too, JSON included

Each in a process of its own, on as many cores as torch takes by default, which has searched some images
before the clock starts. Not so where `fcos predict` uses further processes (a model file, 100 images or
more, Linux): they are started within its time, and have searched nothing. The command's process keeps freed
memory, as `fcos predict` does and a Python process does not. With `--video`
also frames a second of a clip that is made of the images: a loop that decodes, predicts, draws and encodes
frame by frame against `fcos predict clip.mp4`.
"""

from __future__ import annotations

import io
import json
import statistics
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import torch
from frame import in_process, in_turn, start
from PIL import Image

from fcos import Detector
from fcos.cli.processes import can_fork, usual_processes
from fcos.cpu.memory import keep_freed_memory
from fcos.predict.images import plan, predict_images
from fcos.predict.sources import Source, find_sources
from fcos.predict.video import VideoOptions, predict_video
from fcos.predict.video_reader import Frame, VideoReader, import_av
from fcos.predict.video_writer import VideoWriter

WARM_UP = 20  # images


def compare(ways: list[str], model: Path, paths: list[Path], rounds: int, unit: str) -> None:
    number = len(paths)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            times[way].append(in_process(seconds, model, paths, unit, way))
    first = statistics.median(times[ways[0]])
    for way, values in times.items():
        median = statistics.median(values)
        spread = f"{number / max(values):.1f} to {number / min(values):.1f}"
        print(f"{way:8s} {number / median:6.1f} {unit}/s ({spread}), {first / median:.2f} times the first")


def image_runs(detector: Detector, paths: list[Path], out: Path) -> dict[str, Callable[[], object]]:
    sources = plan(find_sources([str(path) for path in paths], out), out)

    def loop() -> None:
        for path in paths:
            detector.predict(path).draw().save(out / path.name, quality=92)

    def stream() -> None:
        for path, found in zip(paths, detector.stream(paths), strict=True):
            found.draw().save(out / path.name, quality=92)

    num_processes = usual_processes(len(paths)) if can_fork(detector.path, "cpu") else 1

    def command() -> None:
        found = list(predict_images(detector, sources, out, detector.threshold, num_processes=num_processes))
        (out / "detections.json").write_text(json.dumps(found, indent=1))

    return {"loop": loop, "stream": stream, "command": command}


def write_clip(paths: list[Path], clip: Path) -> None:
    import_av()
    from av import VideoFrame

    with VideoWriter(clip, Fraction(25), Fraction(1, 25)) as writer:
        for number, path in enumerate(paths):
            image = Image.open(path).convert("RGB").resize((640, 480))
            writer.write(Frame(number, number / 25, number, VideoFrame.from_image(image)), image)


def video_runs(detector: Detector, clip: Path, out: Path) -> dict[str, Callable[[], object]]:
    def loop() -> None:
        with VideoReader(str(clip)) as reader:
            with VideoWriter(out / "loop.mp4", reader.frame_rate, reader.time_base) as writer:
                for frame in reader.frames():
                    writer.write(frame, detector.predict(frame.pixels()).draw())

    def command() -> None:
        source = Source("video", str(clip), Path("command.mp4"))
        options = VideoOptions(detector.threshold)
        predict_video(detector, source, out / "command.mp4", io.StringIO(), options)

    return {"loop": loop, "command": command}


def main(
    model: Path,
    folder: Path,
    number: Annotated[int, "images of a round"] = 300,
    rounds: int = 5,
    ways: list[str] = ["loop", "stream", "command"],  # noqa: B006
    video: bool = False,
) -> None:
    paths = sorted(folder.glob("*.jpg"))[:number]
    print(f"{model}, {len(paths)} images, {torch.get_num_threads()} threads", flush=True)
    compare(ways, model, paths, rounds, "images")
    if video:
        compare(["loop", "command"], model, paths, rounds, "frames")


def seconds(model: Path, paths: list[Path], unit: str, way: str) -> float:
    """Of one round, in this process."""
    if way == "command":
        keep_freed_memory()
    detector = Detector.load(model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if unit == "frames":
            write_clip(paths, out / "clip.mp4")
            run = video_runs(detector, out / "clip.mp4", out)[way]
            run()
        else:
            run = image_runs(detector, paths, out)[way]
            if way != "command" or usual_processes(len(paths)) == 1:
                image_runs(detector, paths[:WARM_UP], out)[way]()
        return in_turn({way: run}, 1, warm_up=0)[way][0]


if __name__ == "__main__":
    start(main)
