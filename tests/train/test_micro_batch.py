"""`micro_batch: "auto"`: what is tried, what is kept, and that nothing else of a run changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning_fabric import Fabric

from fcos.config import TrainConfig, load_config
from fcos.data.annotations import Annotations, Record
from fcos.errors import TrainingError
from fcos.train import micro_batch, run
from fcos.train.devices import build_fabric
from fcos.train.micro_batch import find_micro_batch, largest_batch, largest_that_fits, take_steps

from ..rectangles import Tiny

GB = 2**30


def memory_of(most: int, tried: list[int]) -> Callable[[int], bool]:
    def fits(size: int) -> bool:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return True

    return fits


@pytest.mark.parametrize(
    ("share", "most", "found", "tried"),
    [(16, 16, 16, [16]), (16, 5, 4, [16, 8, 4]), (12, 3, 3, [12, 6, 4, 3]), (7, 6, 1, [7, 1])],
)
def test_divisors_of_the_share_are_tried_from_the_largest(
    share: int, most: int, found: int, tried: list[int]
) -> None:
    seen: list[int] = []
    assert largest_that_fits(share, memory_of(most, seen)) == found
    assert seen == tried


def test_a_gpu_too_small_for_one_image_is_an_error() -> None:
    with pytest.raises(TrainingError, match="a micro-batch of one image does not fit"):
        largest_that_fits(4, memory_of(0, []))
    with pytest.raises(TrainingError, match="use activation_checkpointing=true"):
        largest_that_fits(4, lambda size: False)


def gpu(broadcast: Callable[[int], int] = lambda number: number, *, is_first: bool = True) -> Any:
    fabric = Mock(spec=Fabric, device=torch.device("cuda", 0), is_global_zero=is_first)
    fabric.broadcast.side_effect = broadcast
    return fabric


def annotations(*sizes_hw: tuple[int, int], boxes: tuple[int, ...]) -> Annotations:
    records = [
        Record.make(Path(f"{i}.png"), [[0, 0, 10, 20]] * count, [i] * count, 10 + i, size_hw=size_hw)
        for i, (size_hw, count) in enumerate(zip(sizes_hw, boxes, strict=True))
    ]
    return Annotations.from_records(records, ["a", "b"], source=Path("made"), format="coco")


TWO = annotations((100, 200), (400, 100), boxes=(1, 3))


def test_a_tenth_of_the_memory_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 GB, of which another program holds 1: trials may take 8
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * GB, 10 * GB))
    needed = {8: 8.1, 4: 4.0}

    def peak_memory(config: TrainConfig, fabric: Any, train_set: Annotations, size: int) -> float:
        assert (config.micro_batch, train_set) == ("auto", TWO)
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return needed[size] * GB

    monkeypatch.setattr(micro_batch, "peak_memory", peak_memory)
    config = load_config({"micro_batch": "auto"})
    assert find_micro_batch(config, gpu(), TWO, 16) == 4
    needed[8] = 7.9
    assert find_micro_batch(config, gpu(), TWO, 16) == 8
    # The others try nothing, and do as the first one says.
    assert find_micro_batch(config, gpu(lambda number: 2, is_first=False), TWO, 16) == 2


def test_the_peak_of_a_trial_is_what_it_added(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device, name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5 * GB)
    monkeypatch.setattr(micro_batch, "take_steps", lambda *trial: calls.append(trial))
    trial = load_config({}), gpu(), TWO, 1
    assert micro_batch.peak_memory(*trial) == 3 * GB
    assert calls == ["empty_cache", "reset_peak_memory_stats", trial]


def test_a_cpu_takes_all_of_its_share_and_a_resumed_run_what_it_had() -> None:
    config, cpu = load_config({"micro_batch": "auto"}), build_fabric("cpu")
    assert find_micro_batch(config, cpu, TWO, 16) == 16
    assert find_micro_batch(config, cpu, TWO, 16, {"micro_batch": 4}) == 4
    assert find_micro_batch(config, cpu, TWO, 16, {"micro_batch": 5}) == 16  # other devices
    assert find_micro_batch(config, cpu, TWO, 16, {}) == 16  # of a version without it


def test_trials_have_the_largest_images_and_the_most_boxes() -> None:
    # 100 x 200 becomes 64 x 128, 400 x 100 becomes 256 x 64: a step of both is padded to 256 x 128.
    config = load_config({"short_side": 64, "view_size": 256})
    batch = largest_batch(config, TWO, 3)
    assert batch.images.shape == (3, 3, 256, 128)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes_hw.tolist() == [[256, 128]] * 3
    assert batch.image_ids == (11, 10, 11)
    assert [len(truth.labels) for truth in batch.ground_truth] == [3, 1, 3]
    # 10 of 100 pixels are 12.8 of 128; 20 of 400 are 12.8 of 256
    expected = torch.tensor([0, 0, 12.8, 12.8]).repeat(3, 1)
    torch.testing.assert_close(batch.ground_truth[0].boxes_xyxy, expected)
    # tiles of 50: all images are squares of 64
    assert largest_batch(config.model_copy(update={"tile": 50}), TWO, 1).images.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("settings", [{}, {"assigner": "simota", "ema_decay": 0.9, "optimizer": "adamw"}])
def test_a_trial_takes_steps_like_a_training(tiny: Tiny, settings: dict[str, Any]) -> None:
    taken: list[tuple[int, int]] = []
    real = micro_batch.Trainer

    def trainer(*arguments: Any) -> Any:
        made = real(*arguments)
        assert made.length.num_eval_images == 0
        take_step = made.take_step
        before = [parameter.clone() for parameter in made.model.parameters()]

        def counted(window: Any, step: int, stop: Any) -> Any:
            result = take_step(window, step, stop)
            taken.append((len(window), len(window[0])))
            after = list(made.model.parameters())
            assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            return result

        made.take_step = counted
        return made

    config = tiny.config("trial", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_batch, "Trainer", trainer)
        take_steps(config, build_fabric("cpu"), TWO, 2)
        take_steps(config, build_fabric("cpu"), TWO, 8)
    assert taken == [(2, 2), (2, 2), (1, 8), (1, 8)]
    assert not (tiny.runs / "trial").exists()


def test_a_run_that_tried_is_the_same_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def try_and_take_2(
        config: TrainConfig, fabric: Any, train_set: Annotations, share: int, former: Any
    ) -> int:
        take_steps(config, fabric, train_set, 4)
        return 2

    settings = {"epochs": 1, "list_eval": ""}
    tiny.train("given", micro_batch=2, **settings)
    monkeypatch.setattr(run, "find_micro_batch", try_and_take_2)
    tiny.train("whole", micro_batch="auto", **settings)
    given, whole = tiny.checkpoint("given"), tiny.checkpoint("whole")
    for part in ("model", "optimizer", "state", "micro_batch"):
        skip = ("/elapsed_s",)
        assert not [d for d in Tiny.differences(given[part], whole[part]) if not d.startswith(skip)], part
    assert whole["micro_batch"] == 2

    # A resumed run does not try again.
    tiny.train_until(2, "stopped", micro_batch="auto", **settings)
    monkeypatch.undo()
    tiny.train("stopped", micro_batch="auto", load=True, **settings)
    resumed = tiny.checkpoint("stopped")
    assert resumed["micro_batch"] == 2
    assert not list(Tiny.differences(whole["model"], resumed["model"]))
    assert load_config(tiny.runs / "stopped" / "config.json").micro_batch == "auto"
