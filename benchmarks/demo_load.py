"""The demo server under load: many clients at once, before and while slow sockets attack it.

    python benchmarks/demo_load.py
    python benchmarks/demo_load.py --clients 50 --seconds 10 --model runs/train

Everything stays on this machine's loopback. The model is a small one with random weights, so that the server
and not the network is measured. Each client keeps its connection, sends the same image again and again, and
opens a new connection when it has lost the old one. An attacker is a socket with headers that never end; when
it is let go, it does not come back (`--persistent`: it does, at once).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from frame import save_random, start
from PIL import Image

REQUEST_SECONDS = 60.0


@dataclass
class Load:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


async def client(port: int, request: bytes, end: float, load: Load) -> None:
    """Ask until the time is up."""
    streams = None
    while time.monotonic() < end:
        started_at = time.monotonic()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if streams is None:
                    streams = await asyncio.open_connection("127.0.0.1", port)
                reader, writer = streams
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                [length] = [
                    line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                ]
                await reader.readexactly(int(length.split(b":")[1]))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            load.errors[type(error).__name__] += 1
            close(streams)
            streams = None
            await asyncio.sleep(0.1)
            continue
        status = head.split(b" ")[1].decode()
        if status == "200":
            load.seconds.append(time.monotonic() - started_at)
        else:
            load.errors[status] += 1
        if b"connection: close" in head.lower():
            close(streams)
            streams = None
            await asyncio.sleep(0.1)
    close(streams)


def close(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
    """Let go of a connection."""
    if streams is not None:
        streams[1].close()


async def attacker(port: int, end: float, persistent: bool) -> None:
    """Hold a connection with headers that never end."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /predict HTTP/1.1\r\nX: ")
            async with asyncio.timeout(max(0, end - time.monotonic())):
                await reader.read()
            writer.close()
        if not persistent:
            return
        await asyncio.sleep(0.05)


async def measure(port: int, arguments: argparse.Namespace, num_attackers: int, request: bytes) -> Load:
    """All clients, and the attackers, who came first."""
    end = time.monotonic() + arguments.seconds + (2 if num_attackers else 0)
    attackers = [asyncio.create_task(attacker(port, end, arguments.persistent)) for _ in range(num_attackers)]
    await asyncio.sleep(2 if num_attackers else 0)
    load = Load()
    await asyncio.gather(*(client(port, request, end, load) for _ in range(arguments.clients)))
    await asyncio.gather(*attackers)
    return load


def told(load: Load, seconds: float, process: int) -> str:
    """One line of figures."""
    errors = ", ".join(f"{count} {what}" for what, count in load.errors.most_common()) or "none"
    memory = f"{resident_mb(process, 'VmRSS'):.0f} MB, at most {resident_mb(process, 'VmHWM'):.0f} MB"
    if not load.seconds:
        return f"nobody got an answer; errors: {errors}; memory {memory}"
    p50, p99 = np.percentile(load.seconds, [50, 99]) * 1000
    rate = len(load.seconds) / seconds
    return f"{rate:.0f} requests/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms; errors: {errors}; memory {memory}"


def resident_mb(process: int, what: str) -> float:
    """Memory of a process now (VmRSS) or at most (VmHWM); Linux only."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def image_file(width: int, height: int) -> bytes:
    """A JPEG, as a phone would send it after scaling."""
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height)).save(content, "JPEG")
    return content.getvalue()


def small_model(folder: Path) -> Path:
    """A model file of few layers with random weights."""
    return save_random(
        folder / "best.safetensors",
        {
            "short_side": 96,
            "view_size": 128,
            "backbone_channels": [8, 8, 16, 16, 32],
            "fpn_channels": 16,
            "head_channels": 16,
        },
        threshold=0.5,
    )


def main(
    clients: int = 200,
    seconds: float = 30.0,
    attackers: int = 70,
    persistent: Annotated[bool, "attackers come back"] = False,
    model: Annotated[Path | None, "default: a small one with random weights"] = None,
) -> None:
    """Start the server, load it, attack it, and stop it."""
    arguments = argparse.Namespace(**locals())
    body = image_file(640, 480)
    request = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    with tempfile.TemporaryDirectory() as folder:
        path = model or small_model(Path(folder))
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fcos",
                "demo",
                str(path),
                "--port",
                "0",
                "--no-open",
                "--device",
                "cpu",
            ],
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().split()[0].rsplit(":", 1)[1])
            print(f"{clients} clients for {seconds:g} s, {len(body) / 1000:.0f} kB an image")
            for num_attackers in (0, attackers):
                load = asyncio.run(measure(port, arguments, num_attackers, request))
                print(f"{num_attackers} attackers: {told(load, seconds, process.pid)}", flush=True)
        finally:
            process.terminate()
            process.wait(timeout=30)


if __name__ == "__main__":
    start(main)
