from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fcos.model.build import build_model
from fcos.train.ema import Ema

if TYPE_CHECKING:
    from ..rectangles import Tiny


def number(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_average_follows_the_live_weights() -> None:
    model = number(0.0)
    ema = Ema(model, decay=0.75)
    nn.init.constant_(model.weight, 8.0)
    ema.update(model, step=1000)
    assert ema.module.weight.item() == 2.0  # 0.75 * 0 + 0.25 * 8
    ema.update(model, step=1001)
    assert ema.module.weight.item() == 3.5
    assert model.weight.item() == 8.0


def test_decay_warms_up() -> None:
    model = number(0.0)
    ema = Ema(model, decay=0.99)
    nn.init.constant_(model.weight, 10.0)
    ema.update(model, step=0)
    assert ema.module.weight.item() == pytest.approx(9.0)  # decay 1/10
    ema.update(model, step=1)
    assert ema.module.weight.item() == pytest.approx(10 - 1 * 2 / 11)  # decay 2/11


def test_statistics_of_norms_are_averaged_and_counters_copied() -> None:
    norm = nn.BatchNorm1d(1, momentum=1.0)
    ema = Ema(norm, decay=0.5)
    norm(torch.tensor([[3.0], [5.0]]))
    ema.update(norm, step=1000)
    assert ema.module.running_mean is not None
    assert ema.module.running_mean.item() == 2.0  # between 0 and 4
    assert int(ema.module.num_batches_tracked) == 1


def test_average_shares_nothing_with_the_model(tiny: Tiny) -> None:
    model = build_model(tiny.config("none", ema_decay=0.9), 2)
    ema = Ema(model, decay=0.9)
    pointers = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in ema.module.state_dict().values())
    # The folded convolutions of the copy read the norms of the copy.
    images, sizes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])
    before = ema.module(images, sizes).logits
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(1.0)
    assert torch.equal(ema.module(images, sizes).logits, before)
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())


def test_a_training_tells_the_average_its_steps(tiny: Tiny) -> None:
    """The warm-up of the decay depends on the number of the step, also after a resume."""
    told: list[int] = []
    update = Ema.update

    def remember(ema: Ema[nn.Module], model: nn.Module, step: int) -> None:
        told.append(step)
        update(ema, model, step)

    with mock.patch.object(Ema, "update", remember):
        tiny.train_until(3, "run", ema_decay=0.9, epochs=2)
        tiny.train("run", ema_decay=0.9, epochs=2, load=True)
    assert told == [0, 1, 2, 3, 4]


def test_average_is_what_is_measured_and_saved(tiny: Tiny) -> None:
    tiny.train("run", ema_decay=0.5)
    checkpoint = tiny.checkpoint("run")
    saved = load_file(tiny.runs / "run" / "last.safetensors")
    key = "head.logits.weight"
    assert torch.equal(saved[key], checkpoint["ema"][key])
    assert not torch.equal(saved[key], checkpoint["model"][key])


def test_without_an_average_the_live_weights_are_saved(tiny: Tiny) -> None:
    tiny.train("run")
    checkpoint = tiny.checkpoint("run")
    assert checkpoint["ema"] is None
    saved = load_file(tiny.runs / "run" / "last.safetensors")
    assert torch.equal(saved["head.logits.weight"], checkpoint["model"]["head.logits.weight"])
