"""Time limits for connections: clients that send or read too slowly are disconnected.

uvicorn limits how long an idle connection is kept, but not how long a request may take to arrive. Without
that, a few sockets with headers that never end block the server forever.
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
ANSWER_SECONDS = 60.0  # for a client to read its response, once it lags behind
IDLE_SECONDS = 5  # between two requests
SHUTDOWN_SECONDS = 3  # for requests in progress when the server is stopped
WORKER_SECONDS = 60  # for a worker's health check: importing PyTorch takes long on a busy machine
MAX_FILES = 4096
MAX_CONNECTIONS = 256  # more than the number of people who try a model at once


class Connection(H11Protocol):
    """A connection with a deadline for its client's next action.

    When there are too many, the one that has waited longest for its client is closed: idle connections cannot
    lock other clients out.
    """

    def __init__(self, config: uvicorn.Config, server_state: ServerState, *more: Any, **options: Any) -> None:
        super().__init__(config, server_state, *more, **options)
        self._waits_for = ""  # "headers", "body" or "reader"; empty: for us
        self._waits_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; close another connection if the limit is reached."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Receive part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The response has been written, but may not have been read."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._wait_for("")

    def shutdown(self) -> None:
        """Stop the server: wait only for requests in progress."""
        if self._waits_for:
            self._let_go("503 Service Unavailable")
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; its client may still be reading the last response."""
        super().timeout_keep_alive_handler()
        self._watch()

    def _watch(self) -> None:
        if self.transport.is_closing() or self.flow.write_paused:
            self._wait_for("reader")
        elif self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            waiting = {h11.IDLE: "headers", h11.SEND_BODY: "body"}
            self._wait_for(waiting.get(self.conn.their_state, ""))
        # else a response is being written: catching up now and then does not extend a slow reader's deadline

    def _wait_for(self, what: str) -> None:
        """Start the clock for this, unless it is already running."""
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
        """Disconnect the client that we have waited for longest; clients sending an image come last."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one._waits_for]
        if waiting:
            oldest = min(waiting, key=lambda one: (one._waits_for == "body", one._waits_since))
            self.connections.discard(oldest)  # immediately: more may be accepted before it is closed
            oldest._let_go("503 Service Unavailable")

    def _let_go(self, status: str) -> None:
        """Close the connection, if possible with a status."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # tells code that waits for the rest of the body
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            self.transport.write(
                f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            )
        self.transport.abort()  # everything that could be written immediately has been


def serve(
    make_app: Callable[[], ASGIApp],
    listening: socket.socket,
    *,
    workers: int = 1,
    shutdown_seconds: int = SHUTDOWN_SECONDS,
) -> None:
    """Serve on this socket until Ctrl-C or SIGTERM.

    Args:
        make_app: called in each serving process; with several workers, it is pickled and sent to them.
        listening: closed at the end.
        shutdown_seconds: for requests in progress at the end.
    """
    num_files = files_to_open()
    config = uvicorn.Config(
        partial(_app_of_process, make_app),
        factory=True,
        http=Connection,
        ws="none",
        log_level="error",  # excludes errors of clients
        access_log=False,
        server_header=False,
        limit_concurrency=min(MAX_CONNECTIONS, num_files // 4),
        backlog=num_files // 8,  # this many are accepted before the first of them is counted
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=shutdown_seconds,
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
        """Replace workers only when one has died.

        uvicorn also replaces workers that do not respond in time; on a busy machine, which are still
        importing PyTorch, again and again.
        """
        if not all(each.process.is_alive() for each in self.processes):
            super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """Refuse new connections immediately, not when the last worker has ended."""
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
        listening.listen()  # connections are already accepted, and wait until the model is loaded
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
    """Wrap an application so that requests cancelled by a shutdown are answered with 503."""

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
    """Whether to print a log record of uvicorn: not about requests cancelled by a shutdown."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and not record.getMessage().startswith("Cancel ")


def files_to_open() -> int:
    """Raise the limit of open files and connections of this process, and return it."""
    if sys.platform == "win32":
        return MAX_FILES
    import resource

    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if most == resource.RLIM_INFINITY else min(MAX_FILES, most)
    if least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted
