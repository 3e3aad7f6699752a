"""Downloads from a real server on this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fcos.errors import DatasetError
from fcos.predict.download import download, without_secrets
from fcos.predict.sources import find_sources

IMAGE = bytes(range(256)) * 1000


class Server(BaseHTTPRequestHandler):
    """Behaves by the address."""

    def do_GET(self) -> None:
        if self.path.startswith("/missing.jpg"):
            self.send_error(404, "Not Found")
            return
        if self.path.startswith("/whose"):
            self.send_response(302 if self.path == "/whose_moved" else 200)
            said = self.headers.get("Authorization", "nobody").encode()
            if self.path == "/whose_moved":
                self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/whose")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            return
        if self.path.startswith("/asked"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())
            return
        if self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "/image.jpg")
            self.end_headers()
            return
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(IMAGE)  # of any length, and never read
            return
        if self.path == "/drips_headers.jpg":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            with contextlib.suppress(OSError):
                for _ in range(60):
                    self.wfile.write(b"b")
                    time.sleep(0.05)
            return
        self.send_response(200)
        if self.path != "/unknown_length.jpg":
            self.send_header("Content-Length", str(len(IMAGE)))
        self.end_headers()
        if self.path == "/stalls.jpg":
            self.wfile.write(IMAGE[:100])
            self.wfile.flush()
            time.sleep(1.5)
        elif self.path == "/drips.jpg":
            for byte in IMAGE[:100]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(IMAGE[:5000] if self.path == "/breaks_off.jpg" else IMAGE)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda request, client: None  # type: ignore[method-assign]  # who hangs up is meant to
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["image.jpg", "moved.jpg", "unknown_length.jpg"])
def test_the_content_comes_as_it_is(address: str, name: str) -> None:
    assert download(f"{address}/{name}") == IMAGE


def test_user_and_password_go_to_their_server_alone_and_into_no_message(address: str) -> None:
    signed = address.replace("://", "://me:se%20cret@")

    assert download(f"{signed}/whose") == b"Basic bWU6c2UgY3JldA=="  # me:se cret
    assert download(f"{signed}/whose_moved") == b"nobody"
    with pytest.raises(DatasetError) as error:
        download(f"{signed}/missing.jpg")
    assert f"in: {address}/missing.jpg" in str(error.value)
    [source] = find_sources([f"{signed}/whose"], Path("out"))
    assert source.where == f"{address}/whose"
    assert "cret" not in repr(source)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://h/a.jpg?token=secret&size=8&raw#at=secret", "https://h/a.jpg?token=...&size=...&..."),
        ("https://h/a.jpg?secret", "https://h/a.jpg?..."),
        ("http://me:sec@ret@[h/a@b.jpg?key=secret=", "http://[h/a@b.jpg?key=..."),
        ("rtsp://me:secret@camera/1", "rtsp://camera/1"),
        ("http://h/a.jpg", "http://h/a.jpg"),
    ],
)
def test_addresses_are_shown_without_what_may_be_secret(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_the_query_goes_to_the_server_and_into_no_message(address: str) -> None:
    assert download(f"{address}/asked?token=secret") == b"/asked?token=secret"
    for name in ("missing.jpg", "image.jpg", "to?ftp://h"):  # refused, too large, redirected
        with pytest.raises(DatasetError) as error:
            download(f"{address}/{name}?token=secret", max_bytes=9)
        assert "token=..." in str(error.value)
        assert "secret" not in str(error.value)


def test_addresses_that_differ_in_their_query_are_two_images() -> None:
    words = ["https://h/get?id=1", "https://h/get?id=2", "https://h/get?id=1"]
    sources = find_sources(words, Path("out"))
    assert [source.address for source in sources] == words[:2]
    assert {source.where for source in sources} == {"https://h/get?id=..."}


def test_what_the_server_refuses_is_said_in_its_words(address: str) -> None:
    with pytest.raises(DatasetError, match=r"the server returned 404 Not Found\n  in: http.*missing\.jpg"):
        download(f"{address}/missing.jpg")


@pytest.mark.parametrize("name", ["image.jpg", "unknown_length.jpg"])
def test_a_file_that_is_too_large_is_not_taken(address: str, name: str) -> None:
    with pytest.raises(DatasetError, match="the file is larger than 0 MB"):
        download(f"{address}/{name}", max_bytes=len(IMAGE) - 1)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("stalls.jpg", {"silence_s": 0.3}),
        ("drips.jpg", {"max_s": 0.5}),
        ("drips_headers.jpg", {"max_s": 0.5}),
    ],
)
def test_a_server_that_is_too_slow_is_not_waited_for(
    address: str, name: str, limits: dict[str, float]
) -> None:
    started_at = time.monotonic()

    with pytest.raises(DatasetError, match=r"cannot be downloaded: .*(timed out|not complete after)"):
        download(f"{address}/{name}", **limits)  # type: ignore[arg-type]
    assert time.monotonic() - started_at < 1.4


def test_a_file_that_breaks_off_is_no_file(address: str) -> None:
    with pytest.raises(DatasetError, match="the connection was closed in the middle of the file"):
        download(f"{address}/breaks_off.jpg")


@pytest.mark.parametrize("target", [Path(__file__).as_uri(), "ftp://127.0.0.1/a.jpg", "data:image/png,abc"])
def test_redirects_lead_to_no_other_kind_of_address(address: str, target: str) -> None:
    with pytest.raises(DatasetError, match=r"(?i)redirect.*(use http or https|not allowed)"):
        download(f"{address}/to?{target}")


@pytest.mark.parametrize(
    "malformed",
    ["http://[", "http://", "http://a b/c.jpg", "https://127.0.0.1:x/", "http://127.0.0.1:99999/"],
)
def test_what_is_no_address_has_a_message(malformed: str) -> None:
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        download(malformed, silence_s=1.0)


def test_without_a_connection_the_message_asks_for_one() -> None:
    with pytest.raises(DatasetError) as error:
        download("http://127.0.0.1:9/image.jpg")
    assert "cannot be downloaded: Connection refused" in str(error.value)
    assert "fix: check the address and the network connection" in str(error.value)
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        download("http://name.that.is.not.there.invalid/image.jpg", silence_s=5.0)
