"""A run that was stopped, however roughly, goes on as if nothing had happened."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fcos.errors import WeightsError
from fcos.plots.curves import read_metrics

if TYPE_CHECKING:
    from conftest import Tiny

# 10 steps an epoch and a line every 2: step 13 is in the middle of an epoch and between two lines.
FINE = {
    "nbatch_train": 2,
    "epochs": 2,
    "augmentation": "strong",
    "img_scale_min": 0.7,
    "ema_decay": 0.9,
    "momentum": 0.9,
}
# Long enough to be found running: 50 steps.
LONG = {"epochs": 20, "eval_epochs": 10, "ema_decay": 0.9}


def assert_same_run(tiny: Tiny, name: str, wanted: str) -> None:
    """Weights, average, optimizer and metrics are the same to the last bit."""
    ours, theirs = tiny.checkpoint(name), tiny.checkpoint(wanted)
    for checkpoint in (ours, theirs):
        del checkpoint["config"], checkpoint["state"]["elapsed_s"]
    assert list(tiny.differences(ours, theirs)) == []
    for kind in ("train", "eval"):
        lines = {line["step"]: line for line in tiny.lines(name, kind)}  # the later of two of one step
        assert list(lines.values()) == tiny.lines(wanted, kind)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_run_stopped_within_an_epoch_goes_on_bit_by_bit(tiny: Tiny, num_workers: int) -> None:
    tiny.train("whole", **FINE)
    tiny.train_until(13, "stopped", **FINE, num_workers=num_workers)
    before = (tiny.runs / "stopped" / "metrics.jsonl").read_bytes()
    assert tiny.checkpoint("stopped")["state"]["step"] == 13
    assert tiny.train("stopped", **FINE, num_workers=num_workers, load=True).finished
    assert_same_run(tiny, "stopped", "whole")
    assert (tiny.runs / "stopped" / "metrics.jsonl").read_bytes().startswith(before)
    assert len(tiny.lines("stopped")) == len(tiny.lines("whole")) == 10


def test_run_stopped_at_the_end_of_an_epoch_measures_it_when_it_goes_on(tiny: Tiny) -> None:
    tiny.train("whole", **FINE)
    tiny.train_until(10, "stopped", **FINE)
    assert tiny.lines("stopped", "eval") == []
    tiny.train("stopped", **FINE, load=True)
    assert_same_run(tiny, "stopped", "whole")


def test_run_stopped_after_its_last_step_is_finished_by_going_on(tiny: Tiny) -> None:
    tiny.train("whole", **FINE)
    tiny.train_until(20, "stopped", **FINE)
    assert tiny.train("stopped", **FINE, load=True).finished
    assert_same_run(tiny, "stopped", "whole")
    assert (tiny.runs / "stopped" / "best.safetensors").is_file()


def test_killed_run_goes_on_bit_by_bit(tiny: Tiny) -> None:
    tiny.train("whole", **LONG)
    process = tiny.start("killed", **LONG, save_steps=3)
    tiny.wait_for_step("killed", 5, process)
    process.kill()
    process.wait()
    at_kill = tiny.lines("killed")[-1]["step"]
    saved = tiny.checkpoint("killed")["state"]["step"]
    assert 3 <= saved <= at_kill < 50
    assert tiny.train("killed", **LONG, save_steps=3, load=True).finished
    assert_same_run(tiny, "killed", "whole")
    # The steps between the last checkpoint and the kill are there twice, and read once.
    assert len(tiny.lines("killed")) == 50 + at_kill - saved
    steps = [line["step"] for line in read_metrics(tiny.runs / "killed") if line["kind"] == "train"]
    assert steps == list(range(1, 51))


@pytest.mark.parametrize(
    ("number", "to_all", "settings"),
    [
        (signal.SIGINT, True, {"num_workers": 2}),  # Ctrl-C reaches every process of a terminal
        (signal.SIGTERM, True, {"num_workers": 2}),  # a scheduler's end of a job
        (signal.SIGTERM, False, {"num_workers": 1, "num_processes": 2}),  # kill
    ],
    ids=["ctrl-c", "job-end", "kill"],
)
def test_signal_ends_the_training_after_the_step(
    tiny: Tiny, number: signal.Signals, to_all: bool, settings: dict[str, Any]
) -> None:
    process = tiny.start("run", **LONG, **settings)
    tiny.wait_for_step("run", 3, process)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    step = tiny.lines("run")[-1]["step"]
    assert tiny.checkpoint("run")["state"]["step"] == step < 50
    assert (
        f"stopped after step {step} of 50; go on with: fcos train {tiny.runs}/run/config.json load=true"
        in (said.replace("\n", " "))
    )


def test_full_disk_leaves_the_checkpoint_before(tiny: Tiny) -> None:
    tiny.train_until(4, "run", **LONG)
    whole = (tiny.runs / "run" / "last.ckpt").read_bytes()

    def allow_half() -> None:
        # A file that grows beyond this fails as on a full disk, but with EFBIG.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, resource.RLIM_INFINITY))

    train_json = str(tiny.data / "train.json")
    command = [sys.executable, "-m", "fcos", "train", train_json, *tiny.arguments("run", **LONG, load=True)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, preexec_fn=allow_half, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.split())
    assert "could not write last.ckpt" in said
    assert "make room on the disk, then go on with the same command and load=true" in said
    assert (tiny.runs / "run" / "last.ckpt").read_bytes() == whole
    assert list(tiny.runs.glob("run/.*")) == []


def test_settings_that_changed_are_named(tiny: Tiny) -> None:
    tiny.train("run", epochs=1)
    with pytest.raises(WeightsError) as caught:
        tiny.train("run", epochs=3, momentum=0.5, num_workers=1, nbatch_eval=2, load=True)
    assert 'the run was started with "epochs": 1, now it is 3' in str(caught.value)
    assert '"momentum": 0.9, now it is 0.5' in str(caught.value)
    assert "set epochs, momentum back" in str(caught.value)


def test_data_may_move_but_not_change(tiny: Tiny) -> None:
    tiny.train_until(3, "run")
    moved = tiny.runs / "moved"
    shutil.copytree(tiny.data, moved)
    paths = {"root_train": str(moved / "train"), "list_train": str(moved / "train.txt")}
    with (moved / "train.txt").open("a") as file:
        file.write("000.png\n")
    with pytest.raises(WeightsError, match="the training data are not those that the run was started with"):
        tiny.train("run", **paths, load=True)
    shutil.copy(tiny.data / "train.txt", moved)
    assert tiny.train("run", **paths, load=True).finished


def test_nothing_to_go_on_from(tiny: Tiny) -> None:
    with pytest.raises(WeightsError, match=r"nothing to go on from: no last\.ckpt in .*never") as caught:
        tiny.train("never", load=True)
    assert 'set "load": false' in str(caught.value)


def test_finished_run_loaded_again_stays_as_it_is(tiny: Tiny) -> None:
    tiny.train("run")
    before = tiny.checkpoint("run")
    assert tiny.train("run", load=True).finished
    assert list(tiny.differences(tiny.checkpoint("run"), before)) == []
    assert len(tiny.lines("run")) == 5
