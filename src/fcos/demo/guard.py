"""Reject requests to other host names than this server's, and from pages of another origin.

A browser sends requests for any page, also to this machine. Two things reveal such a page: the host name in
its requests (it can resolve its own name to this machine: DNS rebinding), and the headers in which the
browser states their origin (`Sec-Fetch-Site`, `Origin`). Programs such as curl send neither of these headers.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # they change nothing, and other pages cannot read the response
OWN_PAGE = ("same-origin", "none")  # none: typed into the address bar

# Everything comes from this server; images also from the browser itself (files, webcam).
RESPONSE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Middleware that rejects requests of other pages, and adds `RESPONSE_HEADERS`.

    `hosts` are the host names to serve, besides IP addresses; None: any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None = None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(RESPONSE_HEADERS)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        asked = headers.get("host", "localhost")  # every browser sends it
        host = _name_of(asked)
        if self.hosts is not None and host not in self.hosts and not _is_address(host):
            detail = f"{host or asked} is not served: set the host with --host"
            return JSONResponse({"detail": detail}, 421)
        if method not in SAFE_METHODS and not _is_own_page(headers):
            return JSONResponse({"detail": "requests from pages of another origin are rejected"}, 403)
        return None


def _is_own_page(headers: Headers) -> bool:
    """Whether a request is from a program, or from the demo's own page."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:  # pages cannot set it; browsers omit it for pages without https
        return site in OWN_PAGE
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _name_of(host: str) -> str:
    """The host name without the port; empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """Whether a host is an IP address, which, unlike a name, cannot be rebound."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def served_hosts(host: str) -> frozenset[str]:
    """Host names to serve for a server that listens on `host`."""
    if host in LOCAL_HOSTS:
        return frozenset(LOCAL_HOSTS)
    name = socket.gethostname().lower()
    return frozenset((*LOCAL_HOSTS, host.lower(), name, f"{name}.local", socket.getfqdn().lower()))
