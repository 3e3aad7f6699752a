"""An image from an address of the web."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import string
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fcos.errors import DatasetError

MAX_BYTES = 64 * 2**20  # of one image file
SILENCE_S = 15.0  # without a byte
MAX_S = 120.0  # in all: connections, redirects, headers and content
PART = 2**16


def without_secrets(address: str) -> str:
    """An address without user, password and the values of its query, for messages and results."""
    place, mark, query = address.partition("#")[0].partition("?")
    place = re.sub(r"(?<=://)[^/]*@", "", place)  # also in what is malformed
    return place + mark + "&".join(_without_value(part) for part in query.split("&"))


def _without_value(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}=..." if equals else "..." * bool(part)


def download(
    address: str, *, max_bytes: int = MAX_BYTES, silence_s: float = SILENCE_S, max_s: float = MAX_S
) -> bytes:
    """The content at an http or https address.

    Raises:
        DatasetError: there is no connection or no such thing, or it is too large or too slow.
    """
    deadline = _Deadline(max_s)
    try:
        with deadline.running():
            return _download(address, max_bytes, silence_s, deadline)
    except DatasetError:
        raise
    # The name is not found, refused, timed out; the answer is no HTTP; the address is none.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # urllib wraps what the system says
        words = getattr(reason, "strerror", None) or reason
        raise DatasetError(
            f"cannot be downloaded: {deadline.complaint or words}",
            where=without_secrets(address),
            fix="is this machine online, and the address right? Or download it elsewhere and give the file",
        ) from error


def _download(address: str, max_bytes: int, silence_s: float, deadline: _Deadline) -> bytes:
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    shown = without_secrets(address)
    address = parts._replace(netloc=host).geturl()
    # Quoted: people type what no address may hold. A name of our own: some servers refuse urllib's.
    request = urllib.request.Request(quote(address, string.punctuation), headers={"User-Agent": "fcos"})
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")  # for this server alone
    content = bytearray()
    try:
        with _opener(deadline).open(request, timeout=silence_s) as answer:
            if (answer.length or 0) <= max_bytes:
                while len(content) <= max_bytes and (part := answer.read1(PART)):
                    content += part
            if len(content) > max_bytes or (answer.length or 0) > max_bytes:
                raise DatasetError(
                    f"the file is larger than {max_bytes / 2**20:.0f} MB",
                    where=shown,
                    fix="download it yourself and give the file",
                )
            # http.client ends a body that stops short without an error when it is read in parts.
            if answer.length or deadline.complaint:
                raise ConnectionError("the connection ended in the middle of the file")
    except urllib.error.HTTPError as error:
        error.close()
        raise DatasetError(
            f"the server answers {error.code} {error.reason}", where=shown, fix="correct the address"
        ) from error
    return bytes(content)


class _Deadline:
    """Ends the connections of a download when its time is over.

    The timeout of a socket counts silence only: a server that sends a byte now and then never reaches it, in
    the headers least of all.
    """

    def __init__(self, max_s: float) -> None:
        self._max_s, self._sockets, self.complaint = max_s, list[socket.socket](), ""

    @contextmanager
    def running(self) -> Iterator[None]:
        timer = threading.Timer(self._max_s, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            for duplicate in self._sockets:
                duplicate.close()

    def connect(self, *words: Any, **options: Any) -> socket.socket:
        """`socket.create_connection`; the connection is watched."""
        connected = socket.create_connection(*words, **options)
        self._sockets.append(connected.dup())  # TLS takes the original's place
        if self.complaint:
            self._end()
        return connected

    def _end(self) -> None:
        self.complaint = f"not complete after {self._max_s:.0f} s"
        for duplicate in self._sockets:
            try:
                duplicate.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                continue


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To the web only: urllib would go on to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As usual; what comes with the redirect is not read, however much it is."""
        fp.close()
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            raise DatasetError(
                f"the server redirects to a {scheme or 'malformed'} address; only http and https are read",
                where=without_secrets(req.full_url),
                fix="download it yourself and give the file",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """What opens http and https addresses, and nothing else."""

    class Http(http.client.HTTPConnection):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            self._create_connection = deadline.connect

    class Https(http.client.HTTPSConnection):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            self._create_connection = deadline.connect

    class Handler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Http, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Https, req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        *(urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), Handler(), SecureHandler()),
        *(urllib.request.HTTPDefaultErrorHandler(), _Redirects(), urllib.request.HTTPErrorProcessor()),
    ):
        opener.add_handler(handler)
    return opener
