"""`fcos export --format web`: the folder on a static host, in Chromium."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fcos import Detections, Detector
from fcos.cli import main
from fcos.data.transforms import resized_size
from fcos.demo.web import check_web, runtime
from fcos.errors import FcosError
from fcos.export.formats import FORMATS
from fcos.export.verify import compare

from .test_page import drop, num_boxes, set_threshold, sync_api

pytestmark = pytest.mark.slow  # fetches 20 MB with npm


class Quiet(SimpleHTTPRequestHandler):
    """A static host that prints nothing."""

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """The npm package onnxruntime-web."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    try:
        with runtime(None) as folder:
            yield folder
    except FcosError as error:
        pytest.skip(f"no registry: {error.what}")


@pytest.fixture(scope="module")
def folder(
    small_model: Path,
    exported: dict[str, Path],
    examples: Path,
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "cats"
    command = ["export", str(small_model), "--format", "web", "-o", str(folder), "--ort", str(package)]
    import onnx

    converted = onnx.load(exported["onnx"])  # the conversion takes longest, and its result is there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FORMATS["onnx"], "convert", lambda graph, dtype: converted)
        answer = CliRunner().invoke(main, [*command, "--check", str(examples / "a.png")])
    assert answer.exit_code == 0, answer.output
    assert "detections in 1 images are the same" in answer.output
    return folder


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The page, which has asked its host for nothing but its files, and has no errors."""
    host = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=host.serve_forever)
    thread.start()
    page = browser.new_page()
    errors: list[str] = []
    asked: list[tuple[str, str]] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append((request.method, request.url)))
    address = f"http://127.0.0.1:{host.server_port}/"
    page.goto(address)
    page.wait_for_selector("#classes button")
    yield page
    page.close()
    host.shutdown()
    thread.join()
    host.server_close()
    assert errors == []
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
    asked = [(method, url) for method, url in asked if not url.startswith(("blob:", "data:"))]
    assert {method for method, _ in asked} == {"GET"}
    assert {url.removeprefix(address) for _, url in asked} <= {"", *there}


def answer_of(page: Any, class_names: tuple[str, ...]) -> Detections:
    """What the page got from the model."""
    found = page.evaluate("current.answer.detections")
    return Detections(
        torch.tensor([one["box_xyxy"] for one in found]).reshape(-1, 4),
        torch.tensor([one["score"] for one in found]),
        torch.tensor([one["label"] for one in found], dtype=torch.int64),
        class_names,
    )


def image(folder: Path, size: tuple[int, int]) -> Path:
    """Soft blotches of color."""
    coarse = np.random.default_rng(1).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / "a.png")
    return folder / "a.png"


def test_detections_are_those_of_pytorch(page: Any, small_model: Path, tmp_path: Path) -> None:
    path = image(tmp_path, (128, 96))  # the size of the network: resizing would round pixels otherwise

    drop(page, path)
    sync_api.expect(page.locator("#facts")).to_contain_text("shown, 128 x 96 pixels", timeout=120_000)

    detector = Detector.load(small_model, device="cpu")
    found, wanted = answer_of(page, detector.class_names), detector.predict(path, 0.05)
    same = compare(wanted, found, detector.config.nms_iou)
    assert len(wanted) > 5
    assert (same.only_first, same.only_second) == ((), ())
    set_threshold(page, 0.05)
    assert num_boxes(page) == len(found)


@pytest.mark.parametrize("size", [(90, 60), (60, 300), (333, 500)], ids=["enlarged", "narrow", "reduced"])
def test_images_are_resized_as_by_pillow(page: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    path = image(tmp_path, size)

    height, width, pixels = page.evaluate(
        """async (bytes) => {
            const image = await decoded(new File([new Uint8Array(bytes)], "a.png"));
            const [height, width] = resizedSize(image);
            return [height, width, [...resized(image, height, width)]];
        }""",
        list(path.read_bytes()),
    )

    assert (height, width) == resized_size((size[1], size[0]), 96, 128)
    wanted = np.asarray(Image.open(path).resize((width, height), Image.Resampling.BILINEAR))
    difference = np.abs(np.array(pixels).reshape(height, width, 3) - wanted.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1  # Pillow has weights of 22 bits


def test_photograph_on_its_side_is_shown_upright(page: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 60), "gray").save(tmp_path / "a.jpg", exif=exif)

    drop(page, tmp_path / "a.jpg")

    sync_api.expect(page.locator("#facts")).to_contain_text("60 x 90 pixels", timeout=120_000)


def test_camera_is_predicted_frame_by_frame(page: Any) -> None:
    page.click("#webcam")
    sync_api.expect(page.locator("#facts")).to_contain_text("webcam: ", timeout=120_000)
    first = page.get_attribute("#image", "src")
    page.wait_for_function("(first) => document.getElementById('image').src !== first", arg=first)
    page.click("#webcam")


def test_file_that_is_no_image_is_refused_in_words(page: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")

    drop(page, tmp_path / "a.png")

    sync_api.expect(page.locator("#message")).to_have_text(
        "a.png: this is not a readable image", timeout=120_000
    )


def test_another_folder_or_no_npm_is_answered_with_what_to_do(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", str(small_model), "--format", "web", "-o", str(tmp_path / "out")]

    other = CliRunner().invoke(main, [*command, "--ort", str(tmp_path)])
    monkeypatch.setenv("PATH", str(tmp_path))
    without = CliRunner().invoke(main, command)

    assert (other.exit_code, without.exit_code) == (2, 2)
    assert "is not the npm package onnxruntime-web: dist/ort.wasm.min.js is missing" in other.output
    assert "`npm pack --silent onnxruntime-web@1.22.0` failed" in without.output
    for answer in (other, without):
        assert "then give --ort node_modules/onnxruntime-web" in answer.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rules", ["mmdetection", "torchvision", "official"])
def test_models_that_resize_otherwise_are_refused(small_model: Path, rules: str) -> None:
    detector = Detector.load(small_model, device="cpu")
    check_web(detector)
    detector.config = detector.config.model_copy(update={"rules": rules})

    with pytest.raises(FcosError, match="the page does not support the resizing of this model"):
        check_web(detector)
    with pytest.raises(FcosError, match="the page predicts whole images, but this model predicts on tiles"):
        check_web(Detector.load(small_model, device="cpu", tile=64))
