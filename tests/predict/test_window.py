"""`fcos predict --show` on a virtual screen of 400 x 300 pixels."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageGrab

from fcos.cli import main
from fcos.errors import FcosError
from fcos.predict.window import Window

pytest.importorskip("tkinter")


@pytest.fixture(scope="module")
def virtual_screen() -> Iterator[str]:
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "400x300x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            number = pipe.readline().strip()
        try:
            yield f":{number}"
        finally:
            server.terminate()


@pytest.fixture
def screen(virtual_screen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DISPLAY", virtual_screen)
    monkeypatch.chdir(tmp_path)
    return virtual_screen


def predict(model_file: Path, *words: object) -> Result:
    return CliRunner().invoke(main, ["predict", str(model_file), *map(str, words), "--device", "cpu"])


def test_an_image_fills_at_most_nine_tenths_of_the_screen(screen: str) -> None:
    window = Window()
    try:
        window.show(Image.new("RGB", (800, 600), (200, 30, 40)), "a")
        seen = np.asarray(ImageGrab.grab(xdisplay=screen).convert("RGB"))
        is_red = (np.abs(seen.astype(int) - [200, 30, 40]) <= 2).all(axis=2)
        assert is_red.sum() == 360 * 270
    finally:
        window.close()


def test_an_image_stays_until_a_key_is_pressed_and_escape_closes_the_window(screen: str) -> None:
    window, image = Window(), Image.new("RGB", (40, 30))
    for key, is_open in (("<space>", True), ("<Escape>", False)):
        window._root.focus_force()
        window._root.after(200, lambda key=key: window._root.event_generate(key))
        window.show(image, "a", wait=True)
        assert window.is_open == is_open
    window.show(image, "a", wait=True)  # does not wait


def test_images_are_shown_one_after_the_other_until_the_window_is_closed(
    model_file: Path, screen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, tuple[int, int]]] = []
    show = Window.show

    def closed_after_two(window: Window, image: Image.Image, title: str, *, wait: bool = False) -> None:
        if window.is_open:
            shown.append((title, image.size))
            window._root.after(100, window.close if len(shown) == 2 else lambda: None)
        show(window, image, title, wait=wait and len(shown) == 2)

    monkeypatch.setattr(Window, "show", closed_after_two)
    for name in ("a.png", "b.png", "c.png"):
        Image.effect_noise((90, 60), 90).convert("RGB").save(name)

    result = predict(model_file, "a.png", "b.png", "c.png", "--show")

    assert result.exit_code == 0, result.output
    assert shown == [("a.png", (90, 60)), ("b.png", (90, 60))]
    assert "3 images, " in result.output
    assert "images/s" not in result.output  # it would count the time of whoever looks
    assert Path("predictions/c.png").is_file()


def test_closing_the_window_ends_a_video_which_need_not_be_drawn_to_a_file(
    model_file: Path, clip: Path, screen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    show = Window.show

    def closed_at_third(window: Window, image: Image.Image, title: str) -> None:
        show(window, image, title)
        sizes.append(image.size)
        if len(sizes) == 3:
            window.close()

    monkeypatch.setattr(Window, "show", closed_at_third)

    result = predict(model_file, clip, "--show", "--no-draw")

    assert result.exit_code == 130, result.output
    assert sizes == [(160, 120)] * 3
    assert len(Path("predictions/detections.jsonl").read_text().splitlines()) == 3
    assert "3 frames, " in result.output
    assert list(Path("predictions").glob("*.mp4")) == []


def test_without_a_screen_it_says_so_before_the_work(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60)).save("a.png")

    result = predict(model_file, "a.png", "--show")

    assert result.exit_code == 2
    assert "--show cannot open a window: no display name" in result.output
    assert "fix: run it on a machine with a screen, or omit --show" in result.output
    assert not Path("predictions").exists()
    with pytest.raises(FcosError, match="cannot open a window"):
        Window()


def test_images_are_shown_as_they_are_drawn(model_file: Path, screen: str) -> None:
    Image.new("RGB", (90, 60)).save("a.png")

    result = predict(model_file, "a.png", "--show", "--no-draw")

    assert result.exit_code == 2
    assert "--show shows drawn images: omit --no-draw" in result.output
