"""`fcos serve` and the same model behind a plain FastAPI handler, under load, in turn.

    python benchmarks/serve_load.py
    python benchmarks/serve_load.py --clients 16 --rounds 5 --model runs/train

Everything stays on this machine's loopback. The plain handler is what one writes first: FastAPI calls it in
threads, and it reads the image with Pillow and calls `Detector.predict`. Each client keeps its connection and
sends the same JPEG of 640 x 480 again and again. All servers run all the time, one of them under load.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import uvicorn
from demo_load import image_file, measure
from fastapi import FastAPI, Request
from frame import save_random, start
from PIL import Image

from fcos import Detector
from fcos.cpu.memory import keep_freed_memory


def plain_app(model: Path) -> FastAPI:
    """The handler that one writes first."""
    detector = Detector.load(model, "cpu")
    app = FastAPI()

    def predict(content: bytes) -> dict[str, Any]:
        found = detector.predict(Image.open(io.BytesIO(content)), 0.05)
        return {
            "boxes": found.boxes_xyxy.tolist(),
            "scores": found.scores.tolist(),
            "labels": found.labels.tolist(),
        }

    @app.post("/predict")
    async def answer(request: Request) -> dict[str, Any]:
        return await asyncio.to_thread(predict, await request.body())

    return app


def serve_plain(model: Path) -> None:
    """In this process, at any free port, printed as `fcos serve` prints it."""
    keep_freed_memory()
    app = plain_app(model)
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])


def small_model(folder: Path) -> Path:
    """MobileNetV2 with random weights, at 320 x 427: a model that one would serve on CPUs."""
    settings = {"model": "fcos_mobilenetv2", "short_side": 320, "view_size": 512}
    return save_random(folder / "best.safetensors", settings, threshold=0.5)


def main(
    clients: Annotated[list[int] | None, "numbers of clients at once; default: 1 8 32"] = None,
    seconds: float = 10.0,
    rounds: int = 3,
    pause: Annotated[float, "seconds for the workers to start"] = 30.0,
    model: Annotated[Path | None, "default: MobileNetV2 with random weights"] = None,
    plain: Annotated[bool, "only run the plain server"] = False,
) -> None:
    """Start all servers and load one after the other."""
    if plain:
        assert model is not None
        serve_plain(model)
        return
    body = image_file(640, 480)
    request = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(model or small_model(Path(folder)))
        serve = [sys.executable, "-m", "fcos", "serve", path, "--port", "0", "--device", "cpu"]
        commands = {
            "plain FastAPI handler": [sys.executable, __file__, "--plain", "--model", path],
            "fcos serve": serve,
            "fcos serve --batch-size 1": [*serve, "--batch-size", "1"],
            "fcos serve --workers 2": [*serve, "--workers", "2"],
        }
        processes = {
            name: subprocess.Popen(
                command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True
            )
            for name, command in commands.items()
        }
        try:
            ports = {name: port_of(process) for name, process in processes.items()}
            time.sleep(pause)  # the workers load the model after the address has been printed
            for num_clients in clients or [1, 8, 32]:
                compare(ports, num_clients, seconds, rounds, request)
        finally:
            for process in processes.values():
                process.terminate()
                process.wait(timeout=60)


def port_of(process: subprocess.Popen[str]) -> int:
    """Where a server answers, once it has said so."""
    assert process.stdout is not None
    return int(process.stdout.readline().split()[0].rsplit(":", 1)[1])


def compare(ports: dict[str, int], num_clients: int, seconds: float, rounds: int, request: bytes) -> None:
    """Load each server in turn, and print a row for each; the first round is not counted."""
    options = Namespace(clients=num_clients, seconds=seconds, persistent=False)
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ports}
    num_errors = dict.fromkeys(ports, 0)
    for number in range(rounds + 1):
        for name, port in ports.items():
            load = asyncio.run(measure(port, options, 0, request))
            num_errors[name] += load.errors.total()
            if not load.seconds:
                raise SystemExit(f"{name}: no answers, {load.errors}")
            if number > 0:
                p50, p99 = np.percentile(load.seconds, [50, 99]) * 1000
                figures[name].append((len(load.seconds) / seconds, p50, p99))
    for name, each in figures.items():
        rate, p50, p99 = (statistics.median(column) for column in zip(*each, strict=True))
        print(
            f"| {num_clients} | {name} | {rate:.1f} | {p50:.0f}, {p99:.0f} | {num_errors[name]} |", flush=True
        )


if __name__ == "__main__":
    start(main)
