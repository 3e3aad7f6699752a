"""A run that was stopped, however roughly, goes on as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fcos import Detector
from fcos.config import load_config
from fcos.errors import CheckpointError, WeightsError
from fcos.report.curves import read_metrics
from fcos.train.run import train

from .. import processes

if TYPE_CHECKING:
    from ..rectangles import Tiny

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


@pytest.fixture(scope="module")
def fine(tiny_of_module: Tiny) -> str:
    """The folder of a run with the settings FINE that nothing stopped."""
    torch.set_num_threads(1)
    return str(tiny_of_module.train("fine", **FINE).folder)


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
def test_run_stopped_within_an_epoch_goes_on_bit_by_bit(tiny: Tiny, fine: str, num_workers: int) -> None:
    tiny.train_until(13, "stopped", **FINE, num_workers=num_workers)
    before = (tiny.runs / "stopped" / "metrics.jsonl").read_bytes()
    assert tiny.checkpoint("stopped")["state"]["step"] == 13
    assert tiny.train("stopped", **FINE, num_workers=num_workers, load=True).finished
    assert_same_run(tiny, "stopped", fine)
    assert (tiny.runs / "stopped" / "metrics.jsonl").read_bytes().startswith(before)
    assert len(tiny.lines("stopped")) == len(tiny.lines(fine)) == 10


def test_run_with_repeats_and_weights_resumes_bit_by_bit(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both classes are in 13 of 20 images, 3 have none: 17 factors of sqrt(20 / 13) make 24.1 images."""
    balanced = {"nbatch_train": 4, "repeat_threshold": 1, "class_weights": {"red": 2}, "epochs": 2}
    tiny.train("whole", **balanced)
    assert "20 images for training, 25 in an epoch with repeats, 7 for" in capsys.readouterr().err
    tiny.train_until(7, "stopped", **balanced)
    tiny.train("stopped", **balanced, load=True)
    assert_same_run(tiny, "stopped", str(tiny.runs / "whole"))
    assert [line["epoch"] for line in tiny.lines("whole", "eval")] == [1, 2]
    assert tiny.lines("whole")[-1]["step"] == 13  # 2 x 25 images in steps of 4


def test_run_with_mixed_images_resumes_bit_by_bit(tiny: Tiny) -> None:
    mixed = FINE | {"mosaic": 0.5, "mixup": 0.3, "copy_paste": 0.5, "mix_until": 0.7}
    tiny.train("whole", **mixed)
    tiny.train_until(13, "stopped", **mixed)  # images are mixed until step 14
    tiny.train("stopped", **mixed, load=True)
    assert_same_run(tiny, "stopped", str(tiny.runs / "whole"))


def test_run_stopped_at_the_end_of_an_epoch_measures_it_when_it_goes_on(tiny: Tiny, fine: str) -> None:
    tiny.train_until(10, "stopped", **FINE)
    assert tiny.lines("stopped", "eval") == []
    tiny.train("stopped", **FINE, load=True)
    assert_same_run(tiny, "stopped", fine)


def test_run_stopped_after_its_last_step_is_finished_by_going_on(tiny: Tiny, fine: str) -> None:
    tiny.train_until(20, "stopped", **FINE)
    assert tiny.train("stopped", **FINE, load=True).finished
    assert_same_run(tiny, "stopped", fine)
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
        f"stopped after step {step} of 50; resume with: fcos train {tiny.runs}/run/config.json load=true"
        in (said.replace("\n", " "))
    )


def test_full_disk_leaves_the_checkpoint_before(tiny: Tiny) -> None:
    tiny.train_until(4, "run", **LONG)
    whole = (tiny.runs / "run" / "last.ckpt").read_bytes()

    # A file that grows beyond this fails as on a full disk, but with EFBIG: Python ignores SIGXFSZ.
    code = (
        "import resource; from fcos.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) // 2}, resource.RLIM_INFINITY)); main()"
    )
    words = ["train", tiny.data / "train.json", *tiny.arguments("run", **LONG, load=True)]
    done = processes.run("-c", code, *words)
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.split())
    assert f"OutputError: cannot be written: File too large in: {tiny.runs}/run/last.ckpt" in said
    assert f"free some disk space, then: fcos train {tiny.runs}/run/config.json load=true;" in said
    assert (tiny.runs / "run" / "last.ckpt").read_bytes() == whole
    assert list(tiny.runs.glob("run/.*")) == []


def test_settings_that_changed_are_named(tiny: Tiny) -> None:
    tiny.train("run", epochs=2)
    with pytest.raises(WeightsError) as caught:
        tiny.train("run", epochs=1, momentum=0.5, num_workers=1, nbatch_eval=2, load=True)
    assert 'the run has "epochs": 2, not 1' in str(caught.value)
    assert '"momentum": 0.9, not 0.5' in str(caught.value)
    assert "set epochs, momentum back" in str(caught.value)
    assert "epochs can only be raised" in str(caught.value)
    assert f"`fcos train {tiny.runs}/run/config.json load=true`; or set epochs" in str(caught.value)


def test_a_run_older_than_a_setting_resumes_without_what_its_preset_says_of_it_now(tiny: Tiny) -> None:
    preset = {"model": "fcos_lite0", "backbone": "resnet18"}
    tiny.train_until(3, "run", **preset, lr_backbone=1, head_init="normal")
    file = tiny.runs / "run" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for key in ("lr_backbone", "head_init"):
        del checkpoint["config"][key]
    torch.save(checkpoint, file)
    with pytest.raises(CheckpointError, match=r'the run has "lr_backbone": 1\.0, not 0\.5'):
        tiny.train("run", **preset, lr_backbone=0.5, load=True)
    assert tiny.config("run", **preset).lr_backbone == 0.1  # the preset's
    tiny.train("run", **preset, load=True)
    groups = tiny.checkpoint("run")["optimizer"]["param_groups"]
    assert [group["lr_factor"] for group in groups] == [1.0, 1.0]


def test_data_may_move_but_not_change(tiny: Tiny) -> None:
    tiny.train_until(3, "run")
    moved = tiny.runs / "moved"
    shutil.copytree(tiny.data, moved)
    paths = {"root_train": str(moved / "train"), "list_train": str(moved / "train.txt")}
    with (moved / "train.txt").open("a") as file:
        file.write("000.png\n")
    with pytest.raises(
        WeightsError, match="the training data differs from the data that the run was started with"
    ):
        tiny.train("run", **paths, load=True)
    shutil.copy(tiny.data / "train.txt", moved)
    assert tiny.train("run", **paths, load=True).finished


def test_nothing_to_resume_from(tiny: Tiny) -> None:
    with pytest.raises(WeightsError, match=r"nothing to resume from: no last\.ckpt in .*never") as caught:
        tiny.train("never", load=True)
    assert 'set "load": false' in str(caught.value)


def test_finished_run_loaded_again_says_so_and_stays_as_it_is(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.train("run")
    files = {path: path.stat().st_mtime_ns for path in (tiny.runs / "run").iterdir()}
    run = tiny.train("run", load=True)
    assert (run.finished, run.exit_code) == (True, 0)
    assert {path: path.stat().st_mtime_ns for path in (tiny.runs / "run").iterdir()} == files
    said = capsys.readouterr().err
    assert f"already finished: {tiny.runs}/run has completed all 2 epochs" in said
    assert f"train longer with: fcos train {tiny.runs}/run/config.json load=true epochs=4" in said


@pytest.mark.parametrize(
    ("schedule", "before", "after"),
    [
        # 20 images in steps of 8: 5 steps become 10. Cosine: (1 + cos(pi step / steps)) / 2
        ({"lr_policy": "cosine"}, "0.000955", "0.005"),
        # step 4 of 5 is behind 2/3 of 5 = 3.3; step 5 of 10 is before 2/3 of 10
        ({"lr_schedule": "[0.667]"}, "0.001", "0.01"),
        ({"lr_schedule": "[4]"}, "0.001", "0.001"),
    ],
)
def test_more_epochs_extend_a_finished_run(
    tiny: Tiny,
    capsys: pytest.CaptureFixture[str],
    schedule: dict[str, Any],
    before: str,
    after: str,
) -> None:
    tiny.train("run", **schedule, lr_base=0.01)
    first = tiny.lines("run")
    assert tiny.train("run", **schedule, lr_base=0.01, epochs=4, load=True).finished
    assert (
        f"extended from 2 to 4 epochs: learning rate {before} in the last step, {after} in the next"
        in capsys.readouterr().err
    )
    lines = tiny.lines("run")
    assert lines[: len(first)] == first
    assert lines[-1]["step"] == 10
    assert [line["epoch"] for line in tiny.lines("run", "eval")] == [1, 2, 3, 4]
    assert load_config(tiny.runs / "run" / "config.json").epochs == 4
    assert not load_config(tiny.runs / "run" / "config.json").load


def test_run_of_an_older_version_with_the_seeds_spelling_resumes(tiny: Tiny) -> None:
    tiny.train_until(2, "run")
    folder = tiny.runs / "run"
    file, checkpoint = folder / "config.json", tiny.checkpoint("run")
    for key in ("epochs", "eval_epochs"):
        checkpoint["config"][key.replace("epochs", "epoches")] = checkpoint["config"].pop(key)
    torch.save(checkpoint, folder / "last.ckpt")
    file.write_text(file.read_text().replace('epochs"', 'epoches"'))
    assert train(load_config(file, ["load=true"])).finished
    assert tiny.lines("run")[-1]["step"] == 5


def test_config_in_a_run_folder_resumes_that_run_and_no_newer_one(tiny: Tiny) -> None:
    tiny.train_until(2, "res")
    tiny.train_until(3, "res")  # makes res-2
    assert tiny.checkpoint("res-2")["state"]["step"] == 3
    moved = tiny.runs / "moved"
    shutil.move(tiny.runs / "res", moved)
    shutil.copytree(moved, tiny.runs / "res")
    for folder in (tiny.runs / "res", moved):
        run = train(load_config(folder / "config.json", ["load=true"]))
        assert (run.folder, run.finished) == (folder, True)
    assert tiny.checkpoint("res-2")["state"]["step"] == 3
    (tiny.runs / "res" / "last.ckpt").unlink()
    config = load_config(tiny.runs / "res" / "config.json", ["load=true"])
    with pytest.raises(WeightsError, match="nothing to resume from"):
        train(config)


def test_run_folder_in_use_is_told_and_free_again_after_a_kill(tiny: Tiny) -> None:
    first = tiny.start("run", **LONG, num_workers=1)
    tiny.wait_for_step("run", 3, first)
    while not (tiny.runs / "run" / "last.ckpt").exists() and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # or it may be done before the second one has started
    second = tiny.start("run", **LONG, load=True)
    _, said = second.communicate(timeout=100)
    assert second.returncode == 2
    assert "Traceback" not in said
    assert said.splitlines()[0].startswith(
        f"OutputError: another training run is using this folder: process {first.pid} on "
    )
    first.kill()  # the loader process lives a little longer
    first.wait()
    assert tiny.train("run", **LONG, load=True).finished
    assert not (tiny.runs / "run" / ".lock").exists()


def test_run_on_tiles_goes_on_bit_by_bit_and_is_measured_as_fcos_eval_does(tiny: Tiny) -> None:
    settings = FINE | {"tile": 40}
    run = tiny.train("whole", **settings).folder
    tiny.train_until(13, "stopped", **settings)
    assert tiny.train("stopped", **settings, load=True).finished
    assert_same_run(tiny, "stopped", str(run))

    detector = Detector.load(run / "last.safetensors", "cpu")
    assert detector.config.tile == 40
    measured = detector.evaluate(tiny.data / "eval.txt", root=tiny.data / "eval", batch_size=4)
    assert measured.map_mean == tiny.lines("whole", "eval")[-1]["map_mean"]
