"""The demo page in a real browser: Chromium, driven by Playwright."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from .conftest import running

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture
def page(browser: sync_api.Browser, address: str) -> Iterator[sync_api.Page]:
    """The page, and afterwards the certainty that nothing went wrong in it."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("#classes button")
    yield page
    page.close()
    assert [error for error in errors if "415" not in error] == []


def drop(page: sync_api.Page, *files: Path) -> None:
    """Drop files on the page, as from a file manager."""
    contents = [{"name": file.name, "bytes": list(file.read_bytes())} for file in files]
    page.evaluate(
        """(contents) => {
            const transfer = new DataTransfer();
            for (const { name, bytes } of contents)
                transfer.items.add(new File([new Uint8Array(bytes)], name));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }""",
        contents,
    )


def set_threshold(page: sync_api.Page, value: float) -> None:
    page.eval_on_selector(
        "#threshold",
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def num_boxes(page: sync_api.Page) -> int:
    return page.locator("#boxes rect").count()


def test_dropped_image_is_searched_and_the_slider_filters_without_asking(
    page: sync_api.Page, examples: Path
) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    drop(page, examples / "a.png")
    sync_api.expect(page.locator("#facts")).to_contain_text("shown")
    asked = [url for url in requests if url.endswith("/predict")]

    set_threshold(page, 0.05)
    everything = num_boxes(page)
    set_threshold(page, 1)
    nothing = num_boxes(page)

    assert (everything > 3, nothing) == (True, 0)
    assert len(asked) == 1
    assert [url for url in requests if url.endswith("/predict")] == asked
    set_threshold(page, 0.05)
    assert num_boxes(page) == everything
    assert f"{everything} of {everything} detections shown, 90 x 60 pixels" in page.inner_text("#facts")


def test_class_buttons_hide_their_boxes(page: sync_api.Page, examples: Path) -> None:
    page.click("#examples button")
    sync_api.expect(page.locator("#facts")).to_contain_text("shown")
    set_threshold(page, 0.05)
    before = num_boxes(page)
    labels = page.eval_on_selector_all("#boxes rect", "rects => rects.map(r => r.getAttribute('aria-label'))")
    cats = sum(label.startswith("cat ") for label in labels)

    page.click("#classes button:has-text('cat')")

    assert num_boxes(page) == before - cats
    assert page.locator("#boxes text").count() == before - cats
    for name in ("dog", "bird"):
        page.click(f"#classes button:has-text('{name}')")
    assert num_boxes(page) == 0
    page.click("#classes button:has-text('all')")
    assert num_boxes(page) == before
    page.click("#classes button:has-text('all')")
    page.click("#classes button:has-text('cat')")
    assert num_boxes(page) == cats


def test_pointing_at_a_box_says_what_it_is(page: sync_api.Page, examples: Path) -> None:
    drop(page, examples / "a.png")
    page.wait_for_selector("#boxes rect")
    rect = page.locator("#boxes rect").last

    rect.hover(force=True)

    words = page.inner_text("#tip")
    assert rect.get_attribute("aria-label").split(";")[0] in words
    assert "pixels at" in words
    assert re.search(r"level P[3-7], point \d+, \d+$", words)


def test_several_images_are_kept_in_a_row(page: sync_api.Page, examples: Path) -> None:
    drop(page, examples / "a.png", examples / "ünï.jpg")
    page.wait_for_selector("#strip button:nth-child(2)")
    assert "ünï.jpg" in page.inner_text("#facts")

    page.click("#strip button:first-child")

    assert "a.png" in page.inner_text("#facts")


def test_an_image_can_be_pasted(page: sync_api.Page, examples: Path) -> None:
    page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        list((examples / "a.png").read_bytes()),
    )
    sync_api.expect(page.locator("#facts")).to_contain_text("image.png: ")
    assert "90 x 60 pixels" in page.inner_text("#facts")


def test_a_broken_file_is_said_and_the_others_are_shown(
    page: sync_api.Page, examples: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")

    drop(page, broken, examples / "a.png")
    page.wait_for_selector("#strip button")

    assert "broken.jpg: this is not a readable image" in page.inner_text("#message")
    assert page.locator("#strip button").count() == 1


def test_image_and_json_can_be_saved(page: sync_api.Page, examples: Path, tmp_path: Path) -> None:
    page.set_input_files("#pick", examples / "a.png")
    page.wait_for_selector("#boxes rect")
    with page.expect_download() as image:
        page.click("#save-image")
    with page.expect_download() as content:
        page.click("#save-json")
    image.value.save_as(tmp_path / "drawn.png")
    content.value.save_as(tmp_path / "found.json")

    assert image.value.suggested_filename == "a-detections.png"
    drawn, plain = Image.open(tmp_path / "drawn.png").convert("RGB"), Image.open(examples / "a.png")
    assert drawn.size == plain.size
    assert drawn.tobytes() != plain.convert("RGB").tobytes()
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["name"], found["width"]) == ("a.png", 90)
    assert len(found["detections"]) == num_boxes(page)


def test_webcam_is_searched_frame_after_frame(page: sync_api.Page) -> None:
    answers: list[str] = []
    page.on("response", lambda response: answers.append(response.url))
    page.click("#webcam")
    sync_api.expect(page.locator("#facts")).to_contain_text("webcam: ", timeout=20_000)
    page.wait_for_timeout(1000)

    assert sum(url.endswith("/predict") for url in answers) >= 2
    page.click("#webcam")
    for _ in range(10):  # frames on their way when it was clicked are still answered
        num_answers = len(answers)
        page.wait_for_timeout(1500)
        if len(answers) == num_answers:
            return
    pytest.fail(f"frames are still sent 15 s after the webcam was switched off: {len(answers)} answers")


HOSTILE = ('<img src=x onerror="hurt()">', "</script><script>hurt()</script>", "\x1b[2Jcat\u202e")


@pytest.fixture(scope="module")
def hostile(small_model: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a demo answers whose model and classes are called like markup."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(small_model, "pt") as file:
        card = json.loads(file.metadata()["fcos"])
    card["class_names"] = HOSTILE
    folder = tmp_path_factory.mktemp("m") / "<b onclick='hurt()'>"
    folder.mkdir()
    save_file(load_file(small_model), folder / "best.safetensors", {"fcos": json.dumps(card)})
    with running("-m", "fcos", "demo", folder, "--no-open", "--examples", examples) as served:
        yield served[0]


def test_markup_in_names_is_shown_and_not_run(
    browser: sync_api.Browser, hostile: str, examples: Path, tmp_path: Path
) -> None:
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.add_init_script("window.hurt = () => { window.isHurt = true; }")
    page.goto(hostile)
    page.wait_for_selector("#classes button")
    name = "<img src=x onerror=hurt()>.png"
    shutil.copy(examples / "a.png", tmp_path / name)
    drop(page, tmp_path / name)
    set_threshold(page, 0.05)
    page.wait_for_selector("#boxes rect")
    page.locator("#boxes rect").last.hover(force=True)

    assert page.inner_text("#model") == "<b onclick='hurt()'>"
    buttons = page.locator("#classes button").all_inner_texts()
    assert buttons == ["all", *HOSTILE[:2], "\\x1b[2Jcat\\u202e"]
    assert name in page.inner_text("#facts")
    assert page.locator("main img[src=x], b, main script").count() == 0
    assert page.evaluate("window.isHurt") is None
    assert errors == []
    page.close()


@pytest.mark.parametrize("width", [360, 1200])
def test_page_fits_the_screen(browser: sync_api.Browser, address: str, examples: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    page.set_input_files("#pick", examples / "a.png")
    page.wait_for_selector("#boxes rect")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    image, boxes = (page.locator(f"#{name}").bounding_box() for name in ("image", "boxes"))
    assert boxes == pytest.approx(image, abs=1)
    page.close()
