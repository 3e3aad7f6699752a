"""The server behind the demo page, asked over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fastapi import HTTPException, Request
from PIL import Image

from fcos import Detector
from fcos.cli import main
from fcos.demo.body import Inbox, decode_image
from fcos.demo.guard import served_hosts
from fcos.demo.server import about_model, build_app


def get(address: str) -> tuple[int, bytes]:
    """Status and content of an answer, also of one that refuses."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def post(address: str, content: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(address, data=content, headers=headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The beginning of a file that says it holds so many gray pixels; not one of them is there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


def test_answer_is_what_the_detector_finds(address: str, model_file: Path, examples: Path) -> None:
    content = (examples / "a.png").read_bytes()

    status, answer = post(f"{address}/predict?score_threshold=0", content)

    wanted = Detector.load(model_file, device="cpu").predict(examples / "a.png", 0.0)
    assert (status, answer["width"], answer["height"]) == (200, 90, 60)
    assert len(wanted) > 0
    found = answer["detections"]
    assert [one["label"] for one in found] == wanted.labels.tolist()
    assert [one["class_name"] for one in found] == [wanted.class_name(i) for i in range(len(wanted))]
    torch.testing.assert_close(torch.tensor([one["score"] for one in found]), wanted.scores)
    torch.testing.assert_close(
        torch.tensor([one["box_xyxy"] for one in found]), wanted.boxes_xyxy, rtol=1e-4, atol=1e-3
    )
    assert answer["elapsed_ms"] > 0
    assert {one["level"] for one in found} <= {"P3", "P4", "P5", "P6", "P7"}
    for one in found:
        (x, y), (x1, y1, x2, y2) = one["point_xy"], one["box_xyxy"]
        assert x1 <= min(x, 90) <= x2  # from a point in the padding, what is left of the box is at the edge
        assert y1 <= min(y, 60) <= y2


def test_threshold_leaves_out_lower_scores(address: str, examples: Path) -> None:
    content = (examples / "a.png").read_bytes()
    scores = [one["score"] for one in post(f"{address}/predict?score_threshold=0", content)[1]["detections"]]
    middle = scores[len(scores) // 2]

    _, answer = post(f"{address}/predict?score_threshold={middle}", content)

    assert len(answer["detections"]) == sum(score >= middle for score in scores) < len(scores)


def test_boxes_are_in_the_frame_of_the_upright_image(address: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    content = encoded(Image.new("RGB", (90, 60), "gray"), format="JPEG", exif=exif)

    _, answer = post(f"{address}/predict", content)

    assert (answer["width"], answer["height"]) == (60, 90)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no image in the request"),
        (b"hello, I am no image", "this is not a readable image"),
        (
            encoded(Image.effect_noise((300, 300), 90), format="PNG")[:20_000],
            "this image is broken and cannot be read",
        ),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
            "this is not a readable image: send a JPEG",  # Pillow would start Ghostscript
        ),
    ],
    ids=["empty", "text", "truncated", "program"],
)
def test_what_is_no_image_is_refused_in_words(address: str, content: bytes, message: str) -> None:
    status, answer = post(f"{address}/predict", content)

    assert status == 415
    assert message in answer["detail"]


def test_long_files_and_large_images_are_refused(address: str) -> None:
    status, answer = post(f"{address}/predict", b"0" * (33 * 2**20))
    assert (status, answer["detail"]) == (413, "the file is larger than 32 MB: resize the image")

    large = encoded(Image.new("L", (9000, 9000)), format="PNG")
    status, answer = post(f"{address}/predict", large)
    assert status == 413
    assert answer["detail"].startswith("the image has 81 million pixels; the limit is 64 million")


def test_pixels_beyond_all_measure_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(HTTPException) as caught:
        decode_image(png_header(60_000, 60_000), 1_000_000)
    assert caught.value.status_code == 413


def test_examples_are_the_images_of_the_folder_and_nothing_else(address: str, examples: Path) -> None:
    about = json.loads(get(f"{address}/about")[1])

    assert (about["num_examples"], about["class_names"]) == (2, ["cat", "dog", "bird"])
    assert get(f"{address}/examples/0") == (200, (examples / "a.png").read_bytes())
    for path in (
        "examples/2",
        "examples/-1",
        "examples/secret.txt",
        "examples/..%2Fsecret.txt",
        "../pyproject.toml",
    ):
        status, content = get(f"{address}/{path}")
        assert status in (404, 422), path
        assert b"nobody may read" not in content


def test_interface_is_described(address: str) -> None:
    described = json.loads(get(f"{address}/openapi.json")[1])

    assert set(described["paths"]) == {"/about", "/examples/{number}", "/predict"}
    body = described["paths"]["/predict"]["post"]["requestBody"]
    assert body["content"] == {"image/*": {"schema": {"type": "string", "format": "binary"}}}


def test_page_may_load_nothing_from_elsewhere(address: str) -> None:
    with urllib.request.urlopen(address, timeout=60) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()

    assert policy.startswith("default-src 'self'")
    assert "unsafe-inline" not in policy
    assert "http" not in page.replace('<html lang="en">', "")


def test_only_this_machine_by_its_own_names_is_answered(address: str) -> None:
    port = address.rsplit(":", 1)[1]
    assert get(f"http://localhost:{port}/about")[0] == 200

    request = urllib.request.Request(f"{address}/about", headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 421
    with caught.value:
        assert "elsewhere.example is not served" in json.load(caught.value)["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, 403),  # another port
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),  # of a file, or of a frame without rights
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "ADDRESS"}, 200),
        ({}, 200),  # a program
    ],
)
def test_pages_from_elsewhere_cannot_make_it_work(
    address: str, examples: Path, headers: dict[str, str], status: int
) -> None:
    headers = {name: value.replace("ADDRESS", address) for name, value in headers.items()}

    answer = post(f"{address}/predict", (examples / "a.png").read_bytes(), headers)

    assert answer[0] == status
    assert ("detections" in answer[1]) == (status == 200)


@pytest.mark.parametrize("host", ["elsewhere.example", "localhost.elsewhere.example", "[::1", "@", ""])
def test_names_that_are_not_of_this_machine_are_refused(address: str, host: str) -> None:
    answer = post(f"{address}/predict", b"", {"Host": host})
    assert answer[0] == 421


@pytest.mark.parametrize("listens_on", ["0.0.0.0", "192.168.1.20", "gpu7"])
def test_a_server_for_the_network_is_asked_by_address_or_by_its_name(listens_on: str) -> None:
    hosts = served_hosts(listens_on)

    assert {"localhost", listens_on, socket.gethostname().lower()} <= hosts
    assert "elsewhere.example" not in hosts


def test_a_form_is_told_apart_from_an_image(address: str, examples: Path) -> None:
    form = b"--b\r\nContent-Disposition: form-data; name=image\r\n\r\n" + (examples / "a.png").read_bytes()

    answer = post(f"{address}/predict", form, {"Content-Type": "multipart/form-data; boundary=b"})

    assert answer[0] == 415
    assert answer[1]["detail"].startswith("this is a form: send the image file itself as the body")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "2", "high", "%00", "<script>"])
def test_thresholds_that_are_none_are_refused(address: str, value: str) -> None:
    status, answer = post(f"{address}/predict?score_threshold={value}", b"x")

    assert status == 422
    assert answer["detail"].startswith("score_threshold: Input should be ")


def test_images_of_many_bits_or_many_passes_count_for_more() -> None:
    wide = encoded(Image.new("I;16", (100, 100)), format="PNG")
    assert decode_image(wide, 80_000).shape == (3, 100, 100)
    with pytest.raises(HTTPException) as caught:
        decode_image(wide, 79_999)
    assert caught.value.status_code == 413

    progressive = encoded(Image.effect_noise((100, 100), 90), format="JPEG", progressive=True)
    assert decode_image(progressive, 10_000).shape == (3, 100, 100)
    with pytest.raises(HTTPException) as caught:
        decode_image(progressive + b"\xff\xda" * 20, 10_000)
    assert caught.value.detail == "the JPEG is stored in 26 scans: save it as a baseline JPEG"


def test_many_images_at_once_get_the_answers_of_one(address: str, examples: Path) -> None:
    contents = [(examples / name).read_bytes() for name in ("a.png", "ünï.jpg")] * 8
    alone = [post(f"{address}/predict", content)[1]["detections"] for content in contents[:2]] * 8

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda content: post(f"{address}/predict", content), contents))

    for (status, answer), wanted in zip(answers, alone, strict=True):
        found = answer["detections"]
        assert (status, [one["label"] for one in found]) == (200, [one["label"] for one in wanted])
        for one, same in zip(found, wanted, strict=True):  # a batch rounds otherwise
            assert one["score"] == pytest.approx(same["score"], abs=1e-5)
            assert one["box_xyxy"] == pytest.approx(same["box_xyxy"], abs=1e-3)
    assert alone[0] != alone[1]


def test_a_connection_that_is_cut_leaves_the_server_well(address: str, examples: Path) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")

    assert post(f"{address}/predict", (examples / "a.png").read_bytes())[0] == 200


def test_port_in_use_is_an_error_that_says_so(address: str, model_file: Path) -> None:
    port = address.rsplit(":", 1)[1]

    answer = CliRunner().invoke(main, ["demo", str(model_file), "--port", port, "--no-open"])

    assert answer.exit_code == 2
    assert f"cannot listen on 127.0.0.1, port {port}: " in answer.output
    assert "give another --port, or --port 0 for any free one" in answer.output


def test_bodies_that_wait_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(*parts: bytes) -> Request:
        messages = iter([*({"type": "http.request", "body": part, "more_body": True} for part in parts), END])

        async def receive() -> Any:
            return next(messages)

        return Request({"type": "http", "headers": []}, receive)

    END = {"type": "http.request", "body": b"", "more_body": False}
    monkeypatch.setattr("fcos.demo.body.MAX_BYTES", 60)
    monkeypatch.setattr("fcos.demo.body.MAX_HELD_BYTES", 100)
    inbox = Inbox()
    assert len(asyncio.run(inbox.read(request(b"0" * 30, b"0" * 30)))) == 60

    with pytest.raises(HTTPException) as caught:
        asyncio.run(inbox.read(request(b"0" * 30, b"0" * 20)))
    assert caught.value.status_code == 503
    assert inbox.held_bytes == 60

    inbox.forget(60)
    assert len(asyncio.run(inbox.read(request(b"0" * 50)))) == 50


def test_app_is_made_without_a_server(model_file: Path) -> None:
    app = build_app(Detector.load(model_file, device="cpu"))

    assert app.title == "fcos"


def test_the_page_names_the_run_or_the_everyday_detector(model_file: Path) -> None:
    assert about_model(Detector.load(model_file, device="cpu"), 0).model == model_file.parent.name
    assert about_model(Detector.load("everyday", device="cpu"), 0).model == "everyday"
