"""`fcos serve`: a model as an HTTP service."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from fcos.cli.options import model_argument, needs_demo, server_options

SHUTDOWN_SECONDS = 25  # Kubernetes kills after 30

EPILOG = """\b
Examples:
  fcos serve runs/train
  fcos serve best.onnx --host 0.0.0.0 --port 80 --workers 4
  curl --data-binary @street.jpg 'http://127.0.0.1:8000/predict?score_threshold=0.5'
  curl http://127.0.0.1:8000/healthz http://127.0.0.1:8000/metrics
"""


@click.command(epilog=EPILOG)
@model_argument
@server_options
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Maximum images per forward pass; default: 8 on a GPU, 4 small ones on a CPU.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes; each has the model in memory and its share of the cores.",
)
def command(
    model: Path,
    host: str,
    port: int,
    batch_size: int | None,
    workers: int,
    agnostic_nms: bool | None,
    device: str | list[int],
) -> None:
    """Run a model as an HTTP service: POST an image file to /predict, get JSON.

    Requests that arrive while the network is busy are batched, up to --batch-size; none waits for a batch to
    fill. /healthz answers once the model is ready, /metrics is for Prometheus, /openapi.json describes the
    API. On SIGTERM or Ctrl-C the service refuses new connections, answers requests in progress, and stops.

    It has no encryption or authentication: leave those to a reverse proxy. Needs pip install
    'fcos-torch[demo]'.
    """
    with needs_demo():
        from fcos.demo.connections import address_of, listen, serve
        from fcos.demo.guard import LOCAL_HOSTS
    from fcos.detector import Detector

    hosts = frozenset(LOCAL_HOSTS) if host in LOCAL_HOSTS else None
    with ExitStack() as stack:
        listening = stack.enter_context(listen(host, port))
        address = f"{address_of(listening, host)}  (stop with Ctrl-C)"
        if workers > 1:
            _prepare_workers(workers, stack)
        with needs_demo():
            from fcos.demo.service import worker
        make_app = partial(worker, model, device, agnostic_nms, batch_size=batch_size, hosts=hosts)
        if workers > 1:
            Detector.load(model, device, agnostic_nms=agnostic_nms)  # an error is shown once, not by each
            click.echo(address)
            serve(make_app, listening, workers=workers, shutdown_seconds=SHUTDOWN_SECONDS)
        else:
            app = make_app()
            click.echo(address)
            serve(lambda: app, listening, shutdown_seconds=SHUTDOWN_SECONDS)


def _prepare_workers(workers: int, stack: ExitStack) -> None:
    """Set the environment that workers inherit: their share of the cores, and a folder for their metrics."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // workers))
    # uvicorn kills workers with the signal itself: locks of libraries leak, and Python warns as it frees
    # them.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
