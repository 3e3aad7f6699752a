"""Python processes that have imported torch and the package already: forks of one that did.

Importing what training needs takes 4.5 s of CPU time, a fork some milliseconds. Arguments, environment,
folder, signals, exit codes and what happens at exit are those of any process. What a process does not do
is import: a test of imports or of a package elsewhere starts Python itself.

As a script, this file is the server that imports and forks.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

IMPORTS = (
    *("fcos.cli.train", "fcos.cli.eval", "fcos.cli.predict", "fcos.cli.report", "fcos.train.run"),
    *("fcos.detector", "fcos.report.after_training", "fcos.demo.connections", "fcos.demo.server"),
)


class Fork:
    """As `subprocess.Popen`, in a process group of its own; without `streams`, pipes for what it says.

    Args:
        words: What follows `python`: a script, or `-m` and a module, or `-c` and code; then arguments.
        streams: Descriptors for standard input, output and errors.
    """

    def __init__(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ".",
        streams: Sequence[int] = (),
    ) -> None:
        assert words[0] in ("-m", "-c") or not str(words[0]).startswith("-"), "that needs a Python of its own"
        self.returncode: int | None = None
        ours = []
        if not streams:
            (out, out_end), (err, err_end) = os.pipe(), os.pipe()
            ours = [os.open(os.devnull, os.O_RDONLY), out_end, err_end]
            self.stdout, self.stderr = (open(it, encoding="utf-8") for it in (out, err))
        self._status, status = socket.socketpair(type=socket.SOCK_SEQPACKET)
        request = {"words": list(map(str, words)), "env": with_one_thread(env), "cwd": os.path.abspath(cwd)}
        socket.send_fds(server(), [json.dumps(request).encode()], [*(streams or ours), status.fileno()])
        for end in (*ours, status.detach()):
            os.close(end)
        self.pid = int(self._status.recv(64))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._status.recv(64))
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it says until all that hold its pipes have ended; those of its group are killed in time."""
        with ThreadPoolExecutor() as pool, self.stdout, self.stderr:
            parts = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                out, said = (part.result(timeout) for part in parts)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                raise
        self.wait(timeout)
        return out, said

    def close(self) -> None:
        """Close the pipes of a process that nobody asks any more."""
        for end in (self.stdout, self.stderr, self._status):
            end.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Fresh(subprocess.Popen[str]):
    """The same in a Python of its own: macOS has no such sockets, and forbids forks after torch."""

    def __init__(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ".",
        streams: Sequence[int] = (),
    ) -> None:
        stdin, stdout, stderr = streams or (subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE)
        super().__init__(
            [sys.executable, *map(str, words)],
            env=with_one_thread(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            encoding="utf-8",
            start_new_session=True,
        )

    def close(self) -> None:
        """Close the pipes of a process that nobody asks any more."""
        for end in (self.stdout, self.stderr):
            if end is not None:
                end.close()


Process = Fork if sys.platform == "linux" else Fresh


def with_one_thread(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**(os.environ if env is None else env), "OMP_NUM_THREADS": "1"}


def run(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = ".",
    timeout: float = 300,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, with what it said as text."""
    process = Process(*words, env=env, cwd=cwd)
    out, said = process.communicate(timeout)
    done = subprocess.CompletedProcess(words, process.wait(), out, said)
    if check:
        done.check_returncode()
    return done


@cache
def server() -> socket.socket:
    """Where the server of this process takes requests; it ends with this process."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # forks have but one thread
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


def serve(requests: socket.socket) -> list[str]:
    """Fork for each request; returns in the process that is to run these words."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 2**20, 4)
        if not message:
            sys.exit()
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        requests.close()
        *streams, status = descriptors
        if pid := os.fork():  # the parent tells the id and the exit code
            for descriptor in streams:
                os.close(descriptor)
            os.write(status, str(pid).encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(BrokenPipeError):  # nobody may wait for it
                os.write(status, str(code).encode())
            os._exit(0)
        os.setsid()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        for descriptor in {*descriptors}:
            os.close(descriptor)
        request = json.loads(message)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        words: list[str] = request["words"]
        return words


def execute(words: list[str]) -> None:
    """What `python` does with these words."""
    lines = os.isatty(1) or "PYTHONUNBUFFERED" in os.environ
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", 1 if lines else -1, encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    kind, *rest = words
    if kind == "-m":
        sys.argv, sys.path[:0] = rest, [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:0] = words, [str(Path(kind).parent)]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # the folder of the tests
    for name in IMPORTS:
        with suppress(ImportError):  # an extra that is not installed
            import_module(name)
    gc.freeze()  # no fork collects garbage among what all share
    execute(serve(socket.socket(fileno=int(sys.argv[1]))))
