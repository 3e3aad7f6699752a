"""The demo and the service as processes of their own, as a user starts them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..processes import Process

# The limits of time are the same code with smaller numbers, and few files may be open.
IMPATIENT = """
import resource, sys
import fcos.demo.connections as connections
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
connections.HEADER_SECONDS = connections.REQUEST_SECONDS = connections.ANSWER_SECONDS = 2.0
connections.IDLE_SECONDS = 1
from fcos.cli import main
main(sys.argv[1:])
"""


@contextmanager
def running(*words: str | Path, **environment: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server, once it has printed its address."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    process = Process(*words, "--port", "0", "--device", "cpu", env=environment)
    line = process.stdout.readline()
    assert line.startswith(("http://127.0.0.1:", "http://0.0.0.0:")), line
    yield line.split()[0], process.pid
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert said == ""  # whatever clients did: no traceback


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium with a camera that shows a moving pattern."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images and a text."""
    folder = tmp_path_factory.mktemp("examples")
    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse.repeat(10, axis=0).repeat(10, axis=1))
    image.save(folder / "a.png")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "ünï.jpg")
    (folder / "secret.txt").write_text("nobody may read this")
    os.mkfifo(folder / "pipe.jpg")
    return folder


@pytest.fixture(scope="session")
def address(model_file: Path, examples: Path) -> Iterator[str]:
    """Where a demo of a tiny model answers."""
    words = ["-m", "fcos", "demo", model_file, "--no-open", "--examples", examples]
    with running(*words) as (address, _):
        yield address


@pytest.fixture(scope="session")
def impatient(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address and process id of a demo that waits 2 s for its clients, and may open 1024 files."""
    folder = tmp_path_factory.mktemp("large")
    Image.effect_noise((3000, 3000), 90).save(folder / "large.bmp")
    with running("-c", IMPATIENT, "demo", small_model, "--no-open", "--examples", folder) as served:
        yield served
