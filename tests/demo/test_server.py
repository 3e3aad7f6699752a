"""The server behind the demo page, asked over HTTP."""

from __future__ import annotations

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
from PIL import Image

from fcos import Detector
from fcos.cli import main
from fcos.demo.server import build_app, open_picture


def get(address: str) -> tuple[int, bytes]:
    """Status and content of an answer, also of one that refuses."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def post(address: str, content: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(address, data=content, method="POST")
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
    """The beginning of a file that says it holds so many grey pixels; not one of them is there."""

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


def test_boxes_are_in_the_frame_of_the_upright_picture(address: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    content = encoded(Image.new("RGB", (90, 60), "grey"), format="JPEG", exif=exif)

    _, answer = post(f"{address}/predict", content)

    assert (answer["width"], answer["height"]) == (60, 90)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no picture in the request"),
        (b"hello, I am no picture", "this is no picture that can be read"),
        (
            encoded(Image.effect_noise((300, 300), 90), format="PNG")[:20_000],
            "this picture is broken and cannot be read",
        ),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
            "this is no picture that can be read: send a JPEG",  # Pillow would start Ghostscript
        ),
    ],
    ids=["empty", "text", "truncated", "program"],
)
def test_what_is_no_picture_is_refused_in_words(address: str, content: bytes, message: str) -> None:
    status, answer = post(f"{address}/predict", content)

    assert status == 415
    assert message in answer["detail"]


def test_long_files_and_large_pictures_are_refused(address: str) -> None:
    status, answer = post(f"{address}/predict", b"0" * (33 * 2**20))
    assert (status, answer["detail"]) == (413, "the file is longer than 32 MB: scale the picture")

    large = encoded(Image.new("L", (9000, 9000)), format="PNG")
    status, answer = post(f"{address}/predict", large)
    assert status == 413
    assert answer["detail"].startswith("the picture has 81 million pixels, at most 64 million are taken")


def test_pixels_beyond_all_measure_are_refused_before_they_are_decoded() -> None:
    from fastapi import HTTPException

    with pytest.raises(HTTPException) as caught:
        open_picture(png_header(60_000, 60_000), 1_000_000)
    assert caught.value.status_code == 413


def test_examples_are_the_pictures_of_the_folder_and_nothing_else(address: str, examples: Path) -> None:
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


def test_many_pictures_at_once_get_the_answers_of_one(address: str, examples: Path) -> None:
    contents = [(examples / name).read_bytes() for name in ("a.png", "ünï.jpg")] * 8
    alone = [post(f"{address}/predict", content)[1]["detections"] for content in contents[:2]] * 8

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda content: post(f"{address}/predict", content), contents))

    assert [answer["detections"] for _, answer in answers] == alone
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
    assert "give another --port, or 0 for a free one" in answer.output


def test_app_is_made_without_a_server(model_file: Path) -> None:
    app = build_app(Detector.load(model_file, device="cpu"))

    assert app.title == "fcos"
