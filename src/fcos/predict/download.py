"""Download an image from a URL."""

from __future__ import annotations

import base64
import http.client
import re
import string
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fcos.errors import DatasetError

MAX_BYTES = 64 * 2**20  # of one image file
SILENCE_S = 15.0  # timeout without receiving a byte
MAX_S = 120.0  # total timeout: connections, redirects, headers and content
PART = 2**16


def without_secrets(address: str) -> str:
    """An address without user, password and query values, for messages and results."""
    place, mark, query = address.partition("#")[0].partition("?")
    place = re.sub(r"(?<=://)[^/]*@", "", place)  # works for malformed addresses too
    return place + mark + "&".join(_without_value(part) for part in query.split("&"))


def _without_value(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}=..." if equals else "..." * bool(part)


def download(
    address: str, *, max_bytes: int = MAX_BYTES, silence_s: float = SILENCE_S, max_s: float = MAX_S
) -> bytes:
    """The content at an http or https address.

    Raises:
        DatasetError: the connection failed, the file does not exist, or it is too large or too slow.
    """
    content: Future[bytes] = Future()

    def work() -> None:
        try:
            content.set_result(_download(address, max_bytes, silence_s, max_s))
        except Exception as error:
            content.set_exception(error)

    # In a thread, which is abandoned when time is up: a socket's timeout only covers silence, and a server
    # that sends a byte of a header now and then never triggers it.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max_s)
    try:
        if not content.done():
            raise _too_slow(max_s)
        return content.result()
    except DatasetError:
        raise
    # Name not found, connection refused, timeout; the answer is not HTTP; the address is invalid.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # urllib wraps the system's error
        raise DatasetError(
            f"cannot be downloaded: {getattr(reason, 'strerror', None) or reason}",
            where=without_secrets(address),
            fix="check the address and the network connection, or download the file elsewhere",
        ) from error


def _download(address: str, max_bytes: int, silence_s: float, max_s: float) -> bytes:
    started_at = time.monotonic()
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    shown = without_secrets(address)
    address = parts._replace(netloc=host).geturl()
    # Quoted: people type characters that URLs must not contain. Our own user agent: some servers reject
    # urllib's.
    request = urllib.request.Request(quote(address, string.punctuation), headers={"User-Agent": "fcos"})
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")  # only for this server
    content = bytearray()
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=silence_s) as answer:
            if (answer.length or 0) <= max_bytes:
                while len(content) <= max_bytes and (part := answer.read1(PART)):
                    content += part
                    if time.monotonic() - started_at > max_s:
                        raise _too_slow(max_s)
            if len(content) > max_bytes or (answer.length or 0) > max_bytes:
                raise DatasetError(
                    f"the file is larger than {max_bytes / 2**20:.0f} MB",
                    where=shown,
                    fix="download it yourself and give the file",
                )
            # When a body is read in parts, http.client does not report that it is incomplete.
            if answer.length:
                raise ConnectionError("the connection was closed in the middle of the file")
    except urllib.error.HTTPError as error:
        error.close()
        raise DatasetError(
            f"the server returned {error.code} {error.reason}", where=shown, fix="correct the address"
        ) from error
    return bytes(content)


def _too_slow(max_s: float) -> TimeoutError:
    return TimeoutError(f"not complete after {max_s:.0f} s")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects only to http and https: urllib would also follow ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As usual, without reading the body of the redirect, which may be large."""
        fp.close()
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            raise DatasetError(
                f"the server redirects to a {scheme or 'malformed'} address; use http or https",
                where=without_secrets(req.full_url),
                fix="download it yourself and give the file",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)
