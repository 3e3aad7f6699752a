"""Clients that are slow, many, or both."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from PIL import Image

from .conftest import running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
NEVER_ENDING = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX: "
LONG_BODY = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
NO_BODY = [POST + b"Content-Length: 999999999999999999\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\n"]
# Each prediction takes 10 s, and a stopped server does not wait for it.
SLOW = """
import sys, time
import fcos.demo.connections as connections
from fcos import Detector
connections.SHUTDOWN_SECONDS = 1
def detect(*words):
    time.sleep(10)
Detector.detect = detect
from fcos.cli import main
main(sys.argv[1:])
"""


@contextmanager
def connected(address: str, sent: bytes = b"") -> Iterator[socket.socket]:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        yield connection


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    try:
        while part := connection.recv(2**16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def seconds_to_ask(address: str) -> float:
    started_at = time.monotonic()
    with urllib.request.urlopen(f"{address}/about", timeout=20) as answer:
        assert answer.status == 200
    return time.monotonic() - started_at


@pytest.mark.parametrize(
    "sent", [b"", NEVER_ENDING, LONG_BODY, *NO_BODY], ids=["none", "headers", "body", "huge", "chunked"]
)
def test_a_request_that_does_not_end_is_let_go(impatient: tuple[str, int], sent: bytes) -> None:
    started_at = time.monotonic()
    with connected(impatient[0], sent) as connection:
        assert seconds_to_ask(impatient[0]) < 1
        assert received(connection).startswith(b"HTTP/1.1 408 ")
    assert 1.5 < time.monotonic() - started_at < 6


@pytest.mark.parametrize("sent", [NEVER_ENDING, LONG_BODY], ids=["headers", "body"])
def test_a_byte_now_and_then_gains_no_time(impatient: tuple[str, int], sent: bytes) -> None:
    started_at = time.monotonic()
    with connected(impatient[0], sent) as connection:
        try:
            while time.monotonic() - started_at < 10:
                connection.sendall(b"x")
                time.sleep(0.1)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert time.monotonic() - started_at < 6


def test_whoever_does_not_read_the_answer_is_let_go(impatient: tuple[str, int]) -> None:
    with connected(impatient[0], b"GET /examples/0 HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        time.sleep(6)
        assert len(received(connection)) < 9_000_000  # of the image, what was on its way


def test_idle_connection_is_closed(impatient: tuple[str, int]) -> None:
    with connected(impatient[0], b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        started_at = time.monotonic()
        assert received(connection).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - started_at < 4


@pytest.mark.parametrize("sent", [NEVER_ENDING, LONG_BODY], ids=["headers", "bodies"])
def test_more_connections_than_files_lock_nobody_out(impatient: tuple[str, int], sent: bytes) -> None:
    with ExitStack() as attack:
        for _ in range(500):
            attack.enter_context(connected(impatient[0], sent))
        assert seconds_to_ask(impatient[0]) < 1  # not after their time is up


def test_large_images_at_once_take_the_memory_of_two_and_hold_up_nothing_else(
    impatient: tuple[str, int],
) -> None:
    address, process = impatient
    content = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(content, "PNG")
    before = resident_mb(process)

    def post() -> None:
        with urllib.request.urlopen(f"{address}/predict", content.getvalue(), timeout=60) as answer:
            assert json.load(answer)["width"] == 5000

    clients = [threading.Thread(target=post) for _ in range(8)]
    for client in clients:
        client.start()
    waited = []
    while any(client.is_alive() for client in clients):
        waited.append(seconds_to_ask(address))

    assert max(waited) < 2
    assert resident_mb(process) - before < 700  # one takes about 300, eight took 2000


def resident_mb(process: int) -> float:
    """Most memory that a process has had."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        pytest.skip("no /proc on this system")
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def test_ctrl_c_ends_it_without_waiting_for_clients_and_without_a_word(small_model: Path) -> None:
    with (
        running("-m", "fcos", "demo", small_model, "--no-open") as (address, process),
        ExitStack() as held,
    ):
        for sent in (NEVER_ENDING, LONG_BODY) * 20:
            held.enter_context(connected(address, sent))
        last = held.enter_context(connected(address, LONG_BODY))
        seconds_to_ask(address)
        started_at = time.monotonic()
        os.kill(process, signal.SIGTERM)
        assert received(last).startswith(b"HTTP/1.1 503 ")
        assert time.monotonic() - started_at < 3


def test_a_request_that_is_cut_by_the_end_of_the_server_is_told_so(small_model: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "PNG")
    image = content.getvalue()
    with (
        running("-c", SLOW, "demo", small_model, "--no-open") as (address, process),
        connected(address, POST + b"Content-Length: %d\r\n\r\n%b" % (len(image), image)) as connection,
    ):
        seconds_to_ask(address)
        time.sleep(0.5)
        os.kill(process, signal.SIGTERM)
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b'{"detail":"the server has been stopped"}')
