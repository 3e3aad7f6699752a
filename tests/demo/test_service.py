"""`fcos serve` as a process, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

import fcos
from fcos import Detector
from fcos.cli import main

from .conftest import running
from .test_server import post as post_to

# A pass takes a second more than the network needs.
SLOW = """
import sys, time
from fcos import Detector
detect = Detector.detect
def slowly(*words):
    time.sleep(1)
    return detect(*words)
Detector.detect = slowly
from fcos.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def service(model_file: Path) -> Iterator[str]:
    """Where a service of a tiny model answers."""
    with running("-m", "fcos", "serve", model_file) as (address, _):
        yield address


@pytest.fixture(scope="module")
def workers(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address and process id of a service of two workers, for the network."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("lists processes in /proc")
    folder = tmp_path_factory.mktemp("workers")
    words = ["-m", "fcos", "serve", model_file, "--workers", "2", "--host", "0.0.0.0"]
    with running(*words, TMPDIR=str(folder)) as (address, process):
        wait_until_ready(process, folder)
        yield address, process
        wait_until_ready(process, folder)  # one that is stopped while it starts is not stopped gracefully
    assert list(folder.iterdir()) == []  # of what they counted in


def wait_until_ready(process: int, folder: Path) -> None:
    """Until both workers have begun to count."""
    ends_at = time.monotonic() + 300
    while len(ids := children(process)) < 2 or not all([*folder.rglob(f"histogram_{i}.db")] for i in ids):
        assert time.monotonic() < ends_at
        time.sleep(0.1)


def post(address: str, content: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    return post_to(f"{address}/predict?score_threshold=0", content, headers)


def metrics(address: str) -> dict[str, float]:
    """Every sample by its name, with the label in brackets where it has one."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {"".join((s.name, *(f"[{value}]" for value in s.labels.values()))): s.value for s in samples}


def together(address: str, contents: list[bytes]) -> tuple[list[threading.Thread], list[tuple[int, Any]]]:
    """Requests that have been sent; their answers come while the threads run."""
    answers: list[tuple[int, Any]] = []
    threads = [
        threading.Thread(target=lambda content: answers.append(post(address, content)), args=[content])
        for content in contents
    ]
    for thread in threads:
        thread.start()
    return threads, answers


def test_answer_is_what_the_detector_predicts(service: str, model_file: Path, examples: Path) -> None:
    status, answer = post(service, (examples / "a.png").read_bytes())

    wanted = Detector.load(model_file, device="cpu").predict(examples / "a.png", 0.0)
    assert (status, answer["width"], answer["height"]) == (200, 90, 60)
    assert [one["label"] for one in answer["detections"]] == wanted.labels.tolist()
    boxes = torch.tensor([one["box_xyxy"] for one in answer["detections"]])
    torch.testing.assert_close(boxes, wanted.boxes_xyxy, rtol=1e-4, atol=1e-3)


def test_health_names_the_model(service: str, model_file: Path) -> None:
    with urllib.request.urlopen(f"{service}/healthz", timeout=60) as answer:
        assert json.load(answer) == {"status": "ok", "model": str(model_file), "version": fcos.__version__}


def test_it_has_the_endpoint_of_the_demo_and_not_its_page(service: str) -> None:
    with urllib.request.urlopen(f"{service}/openapi.json", timeout=60) as answer:
        assert set(json.load(answer)["paths"]) == {"/predict", "/healthz", "/metrics"}
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        urllib.request.urlopen(service, timeout=60)
    caught.value.close()


def test_metrics_count_requests_by_status_and_images_of_passes(service: str, examples: Path) -> None:
    before = metrics(service)
    for content in ((examples / "a.png").read_bytes(),) * 3 + (b"no image",):
        post(service, content)
    post(service, b"", {"Host": "elsewhere.example"})

    after = metrics(service)
    risen = {name: value - before.get(name, 0) for name, value in after.items()}
    assert [risen[f"fcos_requests_total[{status}]"] for status in (200, 415, 421)] == [3, 1, 1]
    assert (risen["fcos_request_seconds_count"], risen["fcos_request_seconds_bucket[+Inf]"]) == (5, 5)
    assert (risen["fcos_pass_images_count"], risen["fcos_pass_images_sum"]) == (3, 3)
    assert 0 < risen["fcos_pass_seconds_sum"] < risen["fcos_request_seconds_sum"] < 60


def test_what_waits_runs_together_and_what_is_running_is_answered_at_the_end(
    model_file: Path, examples: Path
) -> None:
    """Six images, of which the first is alone, four are all that a pass takes, and one is left."""
    upright, lying = (examples / "ünï.jpg").read_bytes(), (examples / "a.png").read_bytes()
    with running("-c", SLOW, "serve", model_file, "--batch-size", "4") as (address, process):
        alone = post(address, upright)[1]["detections"]
        threads, answers = together(address, [upright])
        time.sleep(0.5)
        more, more_answers = together(address, [upright] * 5)
        for thread in (*threads, *more):
            thread.join()
        counted = metrics(address)
        threads, last = together(address, [upright, lying])  # sizes that share no pass
        time.sleep(0.5)
        os.kill(process, signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=10)
        for thread in threads:
            thread.join()

    assert [counted[f"fcos_pass_images_bucket[{size}]"] for size in ("1.0", "2.0", "4.0")] == [3, 3, 4]
    assert counted["fcos_pass_images_sum"] == 7
    assert len(alone) > 0
    for status, answer in answers + more_answers:
        assert (status, [one["label"] for one in answer["detections"]]) == (
            200,
            [one["label"] for one in alone],
        )
        scores = [torch.tensor([one["score"] for one in found]) for found in (answer["detections"], alone)]
        torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
    assert sorted((status, answer["width"]) for status, answer in last) == [(200, 60), (200, 90)]


def test_workers_count_together_and_one_that_dies_is_replaced(
    workers: tuple[str, int], examples: Path
) -> None:
    address, process = workers
    content = (examples / "a.png").read_bytes()
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: post(address, content), range(12)))
    assert {status for status, _ in answers} == {200}
    assert metrics(address)["fcos_requests_total[200]"] == 12

    dies, stays = children(process)
    os.kill(dies, signal.SIGKILL)
    ends_at = time.monotonic() + 60
    while len(now := children(process)) < 2 or dies in now:
        assert time.monotonic() < ends_at
        time.sleep(0.1)
    assert stays in now
    assert post(address, content)[0] == 200
    assert metrics(address)["fcos_requests_total[200]"] == 13


def children(process: int) -> list[int]:
    """Workers of a service, without the process that Python uses to track what they share."""
    ids = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return [i for i in ids if b"spawn_main" in Path(f"/proc/{i}/cmdline").read_bytes()]


def test_a_service_for_the_network_is_asked_by_any_name(
    workers: tuple[str, int], service: str, examples: Path
) -> None:
    content = (examples / "a.png").read_bytes()
    elsewhere = {"Host": "detector.internal:8000"}

    assert post(workers[0], content, elsewhere)[0] == 200
    assert post(service, content, elsewhere)[0] == 421  # for this machine only
    assert post(workers[0], content, {"Origin": "http://elsewhere.example"})[0] == 403


def test_a_model_that_is_missing_is_said_once(tmp_path: Path) -> None:
    command = ["serve", str(tmp_path / "none.safetensors"), "--port", "0", "--workers", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # set back afterwards
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONWARNINGS", "")
        answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 2
    assert "none.safetensors" in answer.output
    assert "http://" not in answer.output


@pytest.mark.parametrize("name", ["demo", "serve"])
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("fcos.demo.connections", "uvicorn"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    answer = CliRunner().invoke(main, [name, "best.safetensors"])

    assert answer.exit_code == 2
    assert "the server needs uvicorn" in answer.output
    assert "fix: pip install 'fcos-torch[demo]'" in answer.output
