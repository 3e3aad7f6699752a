"""One run, whoever starts its processes; and a process that dies ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from click.testing import CliRunner
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from fcos.cli import main
from fcos.cli.processes import was_started_with_others
from fcos.errors import DeviceError
from fcos.train import launch
from fcos.train.devices import build_fabric
from fcos.train.launch import Watch, find_launch, is_lost_connection, start_others

from .. import processes

if TYPE_CHECKING:
    from ..processes import Process
    from ..rectangles import Tiny

SHORT = {"epochs": 2, "augmentation": True, "ema_decay": 0.9}
LONG = {"epochs": 16, "eval_epochs": 16, "ema_decay": 0.9, "save_steps": 3}
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "TORCHELASTIC"))}


def slurm(rank: int, port: str) -> dict[str, str]:
    """What srun --ntasks-per-node=2 sets, as far as it is looked at."""
    return {
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NAME": "fcos",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def torchrun() -> list[str]:
    """`torchrun` on this machine with two processes."""
    return [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={find_free_network_port()}",
        "-m",
    ]


def end(process: Process, code: int = 0) -> str:
    _, said = process.communicate(timeout=100)
    assert process.returncode == code, said
    return said


def assert_same_losses(tiny: Tiny, name: str, wanted: str) -> None:
    lines, expected = tiny.lines(name), tiny.lines(wanted)
    assert len(lines) == len(expected) > 0
    for entry, line in zip(lines, expected, strict=True):
        assert entry == pytest.approx(line, rel=2e-5)


def test_torchrun_and_srun_start_the_same_training(tiny: Tiny) -> None:
    tiny.train("alone", **SHORT)
    train = ["fcos", "train", str(tiny.data / "train.json")]
    by_torchrun = tiny.start_python(*torchrun(), *train, *tiny.arguments("torchrun", **SHORT), env=CLEAN)
    port = str(find_free_network_port())
    words = ["-m", *train, *tiny.arguments("srun", **SHORT)]
    tasks = [tiny.start_python(*words, env=CLEAN | slurm(rank, port)) for rank in range(2)]
    said = end(by_torchrun)
    assert "2 x cpu" in said
    assert "2 x cpu" in "".join([end(task) for task in tasks])
    assert_same_losses(tiny, "torchrun", "alone")
    assert_same_losses(tiny, "srun", "alone")


def children(process: Process) -> list[int]:
    """Other ranks of a run, without loader workers."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def long_alone(tiny_of_module: Tiny) -> str:
    """The folder of a run with the settings LONG in one process."""
    return str(tiny_of_module.train("alone", **LONG).folder)


@pytest.mark.parametrize("victim", ["first", pytest.param("second", marks=pytest.mark.slow)])
def test_killed_process_ends_the_run_with_one_message_and_the_run_goes_on_alone(
    tiny: Tiny, long_alone: str, victim: str
) -> None:
    process = tiny.start("run", **LONG, num_processes=2)
    tiny.wait_for_step("run", 6, process)
    [second] = children(process)
    killed_at = time.monotonic()
    os.kill(process.pid if victim == "first" else second, signal.SIGKILL)
    _, said = process.communicate(timeout=60)  # until all that hold its stderr have ended
    assert time.monotonic() - killed_at < 60
    assert process.returncode != 0
    assert said.count("TrainingError: ") == 1, said
    assert "Traceback" not in said, said
    expected = (
        "process 1 of the run was killed" if victim == "first" else "process 2 of 2 was killed by signal 9"
    )
    assert expected in said
    saved = tiny.checkpoint("run")["state"]["step"]
    assert saved >= 3

    assert tiny.train("run", **LONG, load=True).finished
    assert list((tiny.runs / "run").glob(".*")) == []  # what was being written at the kill
    last = {line["step"]: line for line in tiny.lines("run")}
    for line in tiny.lines(long_alone):
        if line["step"] <= saved + 10:  # rounding grows from step to step
            assert last[line["step"]]["loss"] == pytest.approx(line["loss"], rel=1e-4)


def test_killed_process_ends_a_run_of_torchrun(tiny: Tiny) -> None:
    words = ["fcos", "train", str(tiny.data / "train.json"), *tiny.arguments("run", **LONG)]
    process = tiny.start_python(*torchrun(), *words, env=CLEAN)
    tiny.wait_for_step("run", 6, process)
    killed_at = time.monotonic()
    os.kill(children(process)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert process.returncode != 0
    assert "exitcode  : -9" in said  # torchrun's own report
    assert said.count("TrainingError: ") <= 1, said
    assert tiny.checkpoint("run")["state"]["step"] >= 3
    assert list((tiny.runs / "run").glob(".*")) == []


START_AGAIN = """
import os, time
import torch.distributed
from fcos.train.devices import build_fabric
from fcos.train.launch import launched

if __name__ == "__main__":
    kept = []  # as a trainer is until Python collects it
    for number in range(3):
        fabric = build_fabric("cpu", 2)
        if os.environ.get("LOCAL_RANK") == "1":
            time.sleep(0.3)  # the first is sooner
        with launched(fabric):
            kept.append(torch.distributed.distributed_c10d._get_default_group())
            fabric.print(fabric.broadcast(number), fabric.all_reduce(torch.ones(1), reduce_op="sum").item())
"""


def test_processes_that_have_trained_connect_again(tmp_path: Path) -> None:
    script = tmp_path / "again.py"
    script.write_text(START_AGAIN)
    result = processes.run(script, env=CLEAN, timeout=90)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["0 2.0", "1 2.0", "2 2.0"]


@pytest.fixture
def one_run(tiny: Tiny) -> Path:
    tiny.train("run", epochs=1, score_threshold=0.0)  # so that much is found
    return tiny.runs / "run"


def test_evaluation_and_prediction_are_shared_to_the_last_digit(tiny: Tiny, one_run: Path) -> None:
    def run(num_processes: int, *words: Any) -> str:
        arguments = [*map(str, words), "--num-processes", str(num_processes), "--device", "cpu"]
        if num_processes == 1:  # in this one: another takes seconds to start
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 0, result.output
            return result.stdout
        done = processes.run("-m", "fcos", *arguments, env=CLEAN, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    outputs: dict[str, list[Any]] = {}
    for num_processes in (1, 2):
        folder = tiny.runs / f"out-{num_processes}"
        shared = ["--out", folder, "--batch-size", 2]
        printed = run(num_processes, "eval", one_run, *shared)
        said = run(num_processes, "predict", one_run, tiny.data / "eval", "--score-threshold", 0, *shared)
        assert said.count("7 images, ") == 1  # not the 7 of "5.7 images/s"
        content = json.loads((folder / "detections.json").read_text())
        for image in content["images"]:
            image["drawn"] = Path(image["drawn"]).read_bytes()
        results = (folder / "results.json").read_bytes()
        outputs.setdefault("numbers", []).append(printed.splitlines()[:12])
        outputs.setdefault("results", []).append(results)
        outputs.setdefault("images", []).append(content)
    for one, two in outputs.values():
        assert one == two
    assert len(outputs["results"][0]) > 1000
    assert len(outputs["images"][0]["images"]) == 7


def test_uneven_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(DeviceError, match="srun started 3 processes on 2 machines"):
        find_launch()


def test_settings_that_contradict_the_launch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm(0, "1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert was_started_with_others()
    with pytest.raises(DeviceError, match=r'2 processes were started .* but "num_processes" is 3'):
        build_fabric("cpu", 3)


def test_batch_script_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert not was_started_with_others()
    assert build_fabric("cpu").world_size == 1
    assert build_fabric("cpu", 2).world_size == 2  # that we start


def test_a_machine_that_has_srun_gives_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert build_fabric("cpu").world_size == 1  # warnings are errors


def test_one_process_starts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    start_others(1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    start_others(2)
    assert started == []


def test_other_processes_run_the_same_command_with_ranks_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, env: started.append((words, env)))
    monkeypatch.setattr(launch, "_started", [])
    monkeypatch.setattr(sys, "argv", ["script.py", "train", "train.json"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that they are restored
        monkeypatch.delenv(name)
    environment = os.environ
    start_others(3)
    assert [words for words, _ in started] == 2 * [
        [sys.executable, os.path.abspath("script.py"), "train", "train.json"]
    ]
    assert os.environ is environment
    assert environment["LOCAL_RANK"] == "0"
    assert [env for _, env in started] == [{**environment, "LOCAL_RANK": rank} for rank in ("1", "2")]


@pytest.mark.parametrize(
    "said",
    [
        "[../gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:5123",
        "[../gloo/pair.cc:553] Read error [127.0.0.1]:5123: Connection reset by peer",
        "[../gloo/pair.cc:144] writev [127.0.0.1]:5123: Broken pipe",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_lost_connections_are_recognized(said: str) -> None:
    assert is_lost_connection(RuntimeError(said))
    assert not is_lost_connection(OSError(said))
    assert not is_lost_connection(RuntimeError("CUDA error: unknown error"))


@pytest.mark.parametrize("rank", [1, 2])
def test_death_of_the_first_process_ends_the_others_with_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """Where the network does not tell, as with NCCL."""
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(os, "_exit", sys.exit)
    watch = Watch()
    monkeypatch.setattr(watch.over, "wait", mock.Mock(side_effect=[False, False, True]))  # no time passes
    monkeypatch.setattr(os, "getppid", lambda: -1)  # 1 is the parent of a pytest that outlived its shell
    with pytest.raises(SystemExit, match="1"):
        watch.run()
    said = capsys.readouterr().err
    what = "TrainingError: process 1 of the run was killed; the run cannot continue without it\n"
    fix = "  fix: see its own message above; if there is none, it was killed, probably out of memory. "
    assert said.startswith(what + fix) if rank == 1 else said == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert Watch().parent is None  # whose death is no concern of the first
