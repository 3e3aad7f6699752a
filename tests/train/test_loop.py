"""One optimizer step is the same however it is split, and a training really learns."""

from __future__ import annotations

import json
import math
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch

from fcos.errors import TrainingError
from fcos.predict.stop import StopSignal
from fcos.report.curves import read_metrics
from fcos.train.devices import build_fabric
from fcos.train.run import prepare
from fcos.train.step import assign

from .. import processes

if TYPE_CHECKING:
    from ..rectangles import Tiny

# Everything that could depend on the split is on; images of 19 to 64 pixels are padded to 32 or 64.
SPLIT = {"epochs": 4, "augmentation": True, "img_scale_min": 0.3, "ema_decay": 0.9, "eval_epochs": 2}

# The paper's assigner first, then one that depends on predictions.
SOFT = SPLIT | {"epochs": 2, "static_start": 0.3, "assigner": "tal"}

LEARNS = {"epochs": 40, "eval_epochs": 40, "optimizer": "adamw", "lr_base": 0.003, "lr_policy": "cosine"}

# Trains with each list of arguments in turn: starting processes takes far longer than a tiny training.
TRAIN_EACH = """
import json, sys
from fcos.config import load_config
from fcos.train.run import train

if __name__ == "__main__":
    for arguments in json.loads(sys.argv[2]):
        train(load_config(sys.argv[1], arguments))
"""


def run_script(script: str, tiny: Tiny, trainings: list[list[str]]) -> subprocess.CompletedProcess[str]:
    """A user's script, in a process of its own."""
    file = tiny.runs / "script.py"
    file.write_text(script)
    return processes.run(file, tiny.data / "train.json", json.dumps(trainings))


@pytest.fixture(scope="module")
def split(tiny_of_module: Tiny) -> Tiny:
    """The same trainings as a whole and in every split; and what else needs two processes."""
    tiny = tiny_of_module
    torch.set_num_threads(1)
    tiny.train("whole", **SPLIT)
    tiny.train("accumulated", **SPLIT, micro_batch=2)
    tiny.train("soft_whole", **SOFT)
    tiny.train("soft_accumulated", **SOFT, micro_batch=2)
    tiny.train_until(4, "resumed", **SPLIT)

    lines = (tiny.data / "train.txt").read_text().splitlines()
    one_with_boxes = tiny.runs / "one_with_boxes.txt"
    one_with_boxes.write_text("\n".join([lines[0], *(line.split()[0] for line in lines[1:4])]))
    trainings = [
        tiny.arguments("two_processes", **SPLIT, num_processes=2),
        tiny.arguments("two_accumulated", **SPLIT, num_processes=2, micro_batch=2),
        tiny.arguments("resumed", **SPLIT, num_processes=2, load=True),
        tiny.arguments("one_rank_empty", list_train=str(one_with_boxes), nbatch_train=2, num_processes=2),
        tiny.arguments("soft_two_processes", **SOFT, num_processes=2),
        tiny.arguments("soft_two_accumulated", **SOFT, num_processes=2, micro_batch=2),
    ]
    done = run_script(TRAIN_EACH, tiny, trainings)
    assert done.returncode == 0, done.stderr
    return tiny


@pytest.mark.parametrize("name", ["soft_accumulated", "soft_two_processes", "soft_two_accumulated"])
def test_a_split_step_is_the_whole_step_where_targets_depend_on_predictions(split: Tiny, name: str) -> None:
    whole, lines = split.lines("soft_whole"), split.lines(name)
    assert len(whole) == len(lines) > 3
    for entry, wanted in zip(lines, whole, strict=True):
        assert entry == pytest.approx(wanted, rel=5e-5)
    norm = weights(split, "soft_whole").norm()
    assert (weights(split, name) - weights(split, "soft_whole")).norm() < 1e-6 * norm


def test_a_training_starts_with_the_assigner_that_needs_no_predictions(split: Tiny) -> None:
    soft, static = ([line["num_positive"] for line in split.lines(name)] for name in ("soft_whole", "whole"))
    # 0.3 of 5 steps are 1.5: the first two
    assert [ours == theirs for ours, theirs in zip(soft, static[:5], strict=True)] == 2 * [True] + 3 * [False]


def test_losses_where_targets_depend_on_predictions_are_divided_by_their_sums(tiny: Tiny) -> None:
    """A step by hand: gradient and losses of the sums, divided by what was counted."""
    # Images of 32 x 64 pixels; the box weights add up to 1.4, of which the 26 boxes are a bad guess.
    settings = {"assigner": "tal", "distance_init": 2.0, "short_side": 32}
    config = tiny.config("by_hand", epochs=1, **settings)
    with ExitStack() as held:
        fabric = build_fabric(config.device, 1, "fp32")
        trainer = prepare(config, fabric, None, Path(config.run_folder), None, held)
    window = [batch for batch, _ in zip(trainer._loader(), range(2), strict=False)]
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    sums, counted = torch.zeros(3), torch.zeros(())
    trainer.model.train()
    for batch in window:
        output = trainer.model(batch.images, batch.sizes_hw)
        grid = trainer.model.grid((batch.images.shape[2], batch.images.shape[3]))
        targets = assign(trainer.take_step.assigner, grid, batch, output)
        sums = sums + torch.stack(list(trainer.take_step.loss(output, grid, targets, torch.ones(3)).values()))
        counted += targets.box_weights.sum()
    wanted = torch.autograd.grad(sums.sum() / counted, parameters)
    trainer.take_step.config = config.model_copy(update={"lr_base": 0.0, "grad_clip": 0.0})
    with mock.patch.object(trainer.optimizer, "zero_grad"):  # keep the gradients
        report, _ = trainer.take_step(window, 0, StopSignal())
    assert list(report.losses.values()) == pytest.approx((sums / counted).tolist(), rel=1e-5)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def weights(tiny: Tiny, name: str) -> torch.Tensor:
    """All weights of a checkpoint, those of the average behind, as one vector."""
    checkpoint = tiny.checkpoint(name)
    return torch.cat([value.flatten() for part in ("model", "ema") for value in checkpoint[part].values()])


@pytest.mark.parametrize("name", ["accumulated", "two_processes", "two_accumulated", "resumed"])
def test_a_split_step_is_the_whole_step(split: Tiny, name: str) -> None:
    whole, lines = split.lines("whole"), split.lines(name)
    assert len(whole) == 10
    for entry, wanted in zip(lines, whole, strict=True):
        assert entry == pytest.approx(wanted, rel=2e-5)
        assert entry["num_positive"] == wanted["num_positive"]
    norm = weights(split, "whole").norm()
    assert (weights(split, name) - weights(split, "whole")).norm() < 1e-6 * norm


def test_lr_backbone_slows_the_backbone_alone(tiny: Tiny) -> None:
    moved = []
    for factor in (1.0, 0.001):
        config = tiny.config("slower", epochs=1, optimizer="sgd", momentum=0, lr_backbone=factor, grad_clip=0)
        with ExitStack() as held:
            trainer = prepare(
                config, build_fabric(config.device, 1, "fp32"), None, Path(config.run_folder), None, held
            )
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.take_step([next(iter(trainer._loader()))], 0, StopSignal())
        moved.append(
            {name: (value - before[name]).norm().item() for name, value in trainer.model.named_parameters()}
        )
    usual, slower = moved
    for name in usual:
        wanted = 0.001 * usual[name] if name.startswith("backbone.") else usual[name]
        assert slower[name] == pytest.approx(wanted, rel=1e-2, abs=1e-6)
    assert max(usual[name] for name in usual if name.startswith("backbone.")) > 1e-4


def test_the_weights_did_move(split: Tiny) -> None:
    losses = [line["loss"] for line in split.lines("whole")]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["accumulated", "two_processes", "two_accumulated", "resumed"])
def test_every_split_measures_the_same(split: Tiny, name: str) -> None:
    whole, lines = split.lines("whole", "eval"), split.lines(name, "eval")
    assert [line["epoch"] for line in whole] == [2, 4]
    for entry, wanted in zip(lines, whole, strict=True):
        assert entry["stats"] == pytest.approx(wanted["stats"], abs=1e-6)


def test_a_process_without_boxes_takes_part(split: Tiny) -> None:
    lines = split.lines("one_rank_empty")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["num_positive"] > 0 for line in lines].count(True) == 2
    assert all(math.isfinite(line["loss"]) and line["loss_classification"] > 0 for line in lines)


def test_images_without_boxes_are_background_to_learn_from(tiny: Tiny) -> None:
    lines = (tiny.data / "train.txt").read_text().splitlines()
    without_boxes = [line.split()[0] for line in lines[1:]]
    (tiny.runs / "empty.txt").write_text("\n".join([lines[0], *without_boxes]))
    assert tiny.train("empty", list_train=str(tiny.runs / "empty.txt")).finished
    empty_steps = [line for line in tiny.lines("empty") if line["num_positive"] == 0]
    assert empty_steps
    for line in empty_steps:
        assert line["loss_box"] == line["loss_quality"] == 0
        assert 0 < line["loss_classification"] < 1000
        assert line["grad_norm"] > 0


def test_memory_order_changes_rounding_only(tiny: Tiny) -> None:
    tiny.train("channels_last", channels_last=True)
    tiny.train("contiguous", channels_last=False)
    for entry, wanted in zip(tiny.lines("channels_last"), tiny.lines("contiguous"), strict=True):
        assert entry == pytest.approx(wanted, rel=1e-4)
    last, plain = (tiny.checkpoint(name)["model"] for name in ("channels_last", "contiguous"))
    assert all(weight.is_contiguous() for weight in plain.values())
    assert not last["head.box_tower.0.weight"].is_contiguous()


@pytest.mark.parametrize("settings", [{"ema_decay": 0.9}, {"activation_checkpointing": True}], ids=str)
def test_training_stays_the_same_to_the_last_bit(tiny: Tiny, settings: dict[str, Any]) -> None:
    tiny.train("plain")
    tiny.train("other", **settings)
    assert tiny.lines("other") == tiny.lines("plain")
    for part in ("model", "optimizer"):
        assert list(tiny.differences(tiny.checkpoint("other")[part], tiny.checkpoint("plain")[part])) == []


def test_mixed_precision_changes_rounding_only_and_keeps_float32_weights(tiny: Tiny) -> None:
    tiny.train("bf16", precision="bf16", ema_decay=0.9)
    tiny.train("fp32", ema_decay=0.9)
    lines, wanted = tiny.lines("bf16"), tiny.lines("fp32")
    assert lines[0] != wanted[0]  # something was in bf16
    for entry, line in zip(lines, wanted, strict=True):
        assert entry["num_positive"] == line["num_positive"]  # targets are not
        assert entry["lr"] == line["lr"]
        assert entry["loss"] == pytest.approx(line["loss"], rel=0.01)
    checkpoint = tiny.checkpoint("bf16")
    momenta = [state["momentum_buffer"] for state in checkpoint["optimizer"]["state"].values()]
    kept = [*checkpoint["model"].values(), *checkpoint["ema"].values(), *momenta]
    assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "lr_base": 0.001},
        {"quality": "none"},
        {"quality": "iou", "lr_policy": "cosine"},
    ],
    ids=str,
)
def test_other_settings_train_too(tiny: Tiny, settings: dict[str, Any]) -> None:
    assert tiny.train("run", **settings).finished
    losses = [line["loss"] for line in tiny.lines("run")]
    assert losses[-1] < losses[0]


def test_gradient_is_clipped(tiny: Tiny) -> None:
    plain = {"epochs": 1, "nbatch_train": 20, "momentum": 0.0, "weight_decay": 0.0, "lr_base": 1.0}
    start = tiny.train_until(2, "start", **plain | {"lr_base": 1e-30, "epochs": 3}).folder.name
    tiny.train("clipped", **plain, grad_clip=0.01)
    before, after = (tiny.checkpoint(name)["model"] for name in (start, "clipped"))
    moved = torch.cat([(after[key] - before[key]).flatten() for key in before]).norm()
    assert tiny.lines("clipped")[0]["grad_norm"] > 0.1
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_compiled_network_trains_the_same(tiny: Tiny) -> None:
    once = {"nbatch_train": 20, "epochs": 1, "list_eval": "", "root_eval": "", "ema_decay": 0.9}
    # Without the last stage, which makes C++ of the graph and takes minutes; and in a process of its own,
    # as the compiler does not know the type checks of this one.
    script = "import functools, torch; torch.compile = functools.partial(torch.compile, backend='aot_eager')"
    done = run_script(script + TRAIN_EACH, tiny, [tiny.arguments("compiled", **once, compile=True)])
    assert done.returncode == 0, done.stderr
    tiny.train("plain", **once)
    [line], [wanted] = tiny.lines("compiled"), tiny.lines("plain")
    assert line == pytest.approx(wanted, rel=1e-4)
    compiled, plain = tiny.checkpoint("compiled"), tiny.checkpoint("plain")
    assert compiled["model"].keys() == plain["model"].keys()
    for name, weights in compiled["model"].items():
        torch.testing.assert_close(weights, plain["model"][name], rtol=1e-4, atol=1e-6)


def test_batch_norm_of_a_single_value_is_refused_with_the_remedy(tiny: Tiny) -> None:
    with pytest.raises(TrainingError, match="batch norm cannot be trained on a single value") as caught:
        tiny.train("run", head_norm="bn", nbatch_train=1, view_size=32)  # one point of stride 32
    assert caught.value.where == "images of 32 x 32 pixels, padded"
    assert caught.value.fix.startswith("use a micro_batch of at least 2, ")


def test_loss_that_is_not_finite_ends_the_training(tiny: Tiny) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step 2: .*lr 1e\+30") as caught:
        tiny.train("run", lr_base=1e30, lr_schedule=[1000], save_steps=1, nbatch_train=4)
    [file] = tiny.runs.glob("run/not_finite_step_2_rank_0.pt")
    [batch] = torch.load(file, weights_only=True)
    assert batch["images"].dtype == torch.uint8
    assert f"image ids {', '.join(map(str, batch['image_ids']))};" in str(caught.value)
    assert str(file) in str(caught.value)
    assert (
        "To resume from the last checkpoint, which is from before this step, use load=true"
        in caught.value.fix
    )
    assert tiny.checkpoint("run")["state"]["step"] == 1
    assert [line["step"] for line in tiny.lines("run")] == [1]


def test_loss_that_is_not_finite_ends_every_process(tiny: Tiny) -> None:
    process = tiny.start("run", lr_base=1e30, lr_schedule=[1000], num_processes=2, save_steps=1)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert said.count("is not finite at step 2") == 1, said
    assert "Traceback" not in said
    batches = [torch.load(file, weights_only=True)[0] for file in sorted(tiny.runs.glob("run/not_finite*"))]
    image_ids = [image_id for batch in batches for image_id in batch["image_ids"]]
    assert len(image_ids) == 8
    assert f"image ids {', '.join(map(str, image_ids))};" in said.replace("\n", " ")
    assert tiny.checkpoint("run")["state"]["step"] == 1


def test_finds_the_rectangles_that_it_was_trained_on(tiny: Tiny) -> None:
    learned = {"root_eval": str(tiny.data / "train"), "list_eval": str(tiny.data / "train.txt")}
    process = tiny.start("run", **learned, **LEARNS)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    metrics = read_metrics(tiny.runs / "run")
    losses = [line["loss"] for line in metrics if line["kind"] == "train"]
    assert losses[-1] < 0.3 * losses[0]
    assert metrics[-1]["kind"] == "eval"
    assert metrics[-1]["network_s"] <= metrics[-1]["elapsed_s"]
    assert re.search(r"epoch 40: \d+ s, [\d.]+ img/s, \d+% waiting for images", said), said
    given = re.findall(r"epoch \d+: .* waiting for images: (.*)", said)
    assert given
    assert len(given) == len(set(given))  # each advice once
    assert metrics[-1]["map_mean"] > 0.5
    assert (tiny.runs / "run" / "report.html").is_file()
