"""Time limits for connections: clients that send or read too slowly are disconnected.

uvicorn limits how long an idle connection is kept, but not how long a request may take to arrive. Without
that, a few sockets with headers that never end hold the server for ever.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState
from uvicorn.supervisors import Multiprocess

from fcos.errors import FcosError

HEADER_SECONDS = 10.0  # for the headers of a request, and before them on a new connection
REQUEST_SECONDS = 60.0  # for its body: an image file over a slow network
ANSWER_SECONDS = 60.0  # for a client to read its answer, once it lags behind
IDLE_SECONDS = 5  # between two requests
GOODBYE_SECONDS = 3  # for requests in progress when the server is stopped
WORKER_SECONDS = 60  # for a worker to show that it is alive: importing PyTorch on a busy machine takes long
MAX_FILES = 4096
MAX_CONNECTIONS = 256  # above the number of people who try a model at once


class Connection(H11Protocol):
    """A connection with a deadline for whatever its client has to do next.

    When there are too many, the one whose client has kept us waiting for longest makes room: whoever holds
    connections without using them cannot lock others out.
    """

    def __init__(self, config: uvicorn.Config, server_state: ServerState, *more: Any, **options: Any) -> None:
        super().__init__(config, server_state, *more, **options)
        self._waits_for = ""  # "headers", "body" or "reader"; empty: for us
        self._waits_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; make room where the limit is reached."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The answer has been written; perhaps not yet read."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._wait_for("")

    def shutdown(self) -> None:
        """The server is stopped: wait only for requests in progress."""
        if self._waits_for:
            self._let_go("503 Service Unavailable")
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; its client may still be reading the last answer."""
        super().timeout_keep_alive_handler()
        self._watch()

    def _watch(self) -> None:
        if self.transport.is_closing() or self.flow.write_paused:
            self._wait_for("reader")
        elif self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            waiting = {h11.IDLE: "headers", h11.SEND_BODY: "body"}
            self._wait_for(waiting.get(self.conn.their_state, ""))
        # else an answer is being written: a reader that catches up now and then gets no more time for that

    def _wait_for(self, what: str) -> None:
        """Start the clock for this, unless it is running already."""
        if what == self._waits_for:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waits_for, self._waits_since = what, time.monotonic()
        if what:
            seconds = {"headers": HEADER_SECONDS, "body": REQUEST_SECONDS, "reader": ANSWER_SECONDS}[what]
            self._timer = self.loop.call_later(seconds, self._let_go, "408 Request Timeout")

    def _make_room(self) -> None:
        """Disconnect the client that we have waited for longest; those sending an image come last."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one._waits_for]
        if waiting:
            oldest = min(waiting, key=lambda one: (one._waits_for == "body", one._waits_since))
            self.connections.discard(oldest)  # at once: more may be accepted before it is closed
            oldest._let_go("503 Service Unavailable")

    def _let_go(self, status: str) -> None:
        """Say why, where that is possible, and close."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # tells code that waits for the rest of the body
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            self.transport.write(
                f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            )
        self.transport.abort()  # what could be written at once has been


def serve(
    make_app: Callable[[], ASGIApp],
    listening: socket.socket,
    *,
    workers: int = 1,
    goodbye_seconds: int = GOODBYE_SECONDS,
) -> None:
    """Serve on this socket until Ctrl-C or SIGTERM.

    Args:
        make_app: called in each process that answers; with several workers it is sent to them.
        listening: closed at the end.
        goodbye_seconds: for requests in progress at the end.
    """
    num_files = files_to_open()
    config = uvicorn.Config(
        partial(_app_of_process, make_app),
        factory=True,
        http=Connection,
        ws="none",
        log_level="error",  # not the errors of clients
        access_log=False,
        server_header=False,
        limit_concurrency=min(MAX_CONNECTIONS, num_files // 4),
        backlog=num_files // 8,  # this many are accepted before the first of them is counted
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=goodbye_seconds,
        timeout_worker_healthcheck=WORKER_SECONDS,
        workers=workers,
    )
    if workers == 1:
        uvicorn.Server(config).run(sockets=[listening])
    else:
        Workers(config, [listening]).run()


class Workers(Multiprocess):
    """Processes that share a socket; one that dies is replaced."""

    def keep_subprocess_alive(self) -> None:
        """Look after them only when one has died.

        uvicorn also replaces those that do not answer it in time, on a busy machine again and again: they are
        still importing PyTorch.
        """
        if not all(each.process.is_alive() for each in self.processes):
            super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """Refuse new connections at once, instead of at the end of the last worker."""
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


def _app_of_process(make_app: Callable[[], ASGIApp]) -> ASGIApp:
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return answered_when_cut(make_app())


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address, before the model is loaded: a port in use fails at once."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # requests are accepted already, and wait until the model is loaded
    except OSError as error:
        listening.close()
        raise FcosError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            fix="give another --port, or --port 0 for any free one",
        ) from error
    return listening


def address_of(listening: socket.socket, host: str) -> str:
    """The URL for a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def answered_when_cut(app: ASGIApp) -> ASGIApp:
    """The application, whose requests are answered with 503 if they are cut when the server is stopped."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(scope, receive, watched)
        except asyncio.CancelledError:
            if scope["type"] == "http" and not has_begun:
                answer = JSONResponse({"detail": "the server has been stopped"}, 503)
                await answer(scope, receive, send)
            raise

    return answered


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to print what uvicorn reports: not that requests are cut off when the server is stopped."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and not record.getMessage().startswith("Cancel ")


def files_to_open() -> int:
    """How many files and connections the process may have open, once the limit has been raised."""
    if sys.platform == "win32":
        return MAX_FILES
    import resource

    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if most == resource.RLIM_INFINITY else min(MAX_FILES, most)
    if least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted
