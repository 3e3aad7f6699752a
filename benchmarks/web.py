"""Frames per second of `fcos export --format web` in Chromium, against onnxruntime in Python.

    fcos export everyday --format web -o site
    python benchmarks/web.py --site site --image street.jpg

The page and Python (`Detector.load("site/model.onnx").predict`) take turns, one image each, on one core:
from the bytes of a file to detections. Needs the extras `onnx` and `demo`, playwright, and Chromium.
"""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from frame import in_turn, start
from playwright.sync_api import sync_playwright

from fcos import Detector


class Quiet(SimpleHTTPRequestHandler):
    """A static host that prints nothing."""

    def log_message(self, *words: Any) -> None:
        pass


def main(site: Path, image: Path, rounds: int = 20) -> None:
    torch.set_num_threads(1)
    detector = Detector.load(site / "model.onnx")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    host = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{host.server_port}/")
        page.wait_for_selector("#classes button")
        page.evaluate(
            "(bytes) => { file = new File([new Uint8Array(bytes)], 'a.jpg') }", list(image.read_bytes())
        )
        passes = []

        def in_browser() -> None:
            answer, total_ms = page.evaluate("ask(file).then((got) => [got.answer, got.totalMs])")
            passes.append((answer["elapsed_ms"], total_ms))

        times = in_turn({"Python": lambda: detector.predict(image), "browser": in_browser}, rounds, warm_up=3)
        version = browser.version
        browser.close()
    host.shutdown()
    for name, seconds in times.items():
        low, middle, high = (1000 * quarter for quarter in quantiles(seconds, n=4))
        print(f"{name}: {1000 / middle:.1f} images/s; {middle:.0f} ms ({low:.0f} to {high:.0f})")
    forward, total = (median(column) for column in zip(*passes[3:], strict=True))
    ratio = median(a / b for a, b in zip(times["browser"], times["Python"], strict=True))
    print(f"Chromium {version}: forward pass {forward:.0f} ms of {total:.0f}; {ratio:.1f} times Python")


if __name__ == "__main__":
    start(main)
