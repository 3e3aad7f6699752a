from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcos.config import TrainConfig, load_config
from fcos.train.optimizer import Schedule, build_optimizer


def factors(
    total: int = 12, warmup: float = 0, policy: Any = "step", at: tuple[float, ...] = ()
) -> list[float]:
    config = TrainConfig(warmup_iter=warmup, lr_policy=policy, lr_schedule=list(at), lr_gamma=0.1)
    schedule = Schedule(config, total)
    return [schedule.factor(step) for step in range(total)]


def test_rate_falls_at_the_iterations() -> None:
    # The step number 4 (from 0) is the first with the smaller rate: four steps were done before it.
    assert factors(6, at=(4, 5)) == pytest.approx([1, 1, 1, 1, 0.1, 0.01])


def test_fractions_are_of_the_whole_training() -> None:
    assert factors(12, at=(0.5, 0.75)) == factors(12, at=(6, 9))
    assert factors(12, at=(2 / 3, 8 / 9)).count(1.0) == 8


def test_a_milestone_of_1_is_the_first_step_and_no_fraction() -> None:
    assert factors(4, at=(1,)) == pytest.approx([1, 0.1, 0.1, 0.1])


def test_rate_rises_in_even_steps() -> None:
    assert factors(6, warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert factors(8, warmup=0.5) == factors(8, warmup=4)


def test_without_warmup_the_first_step_has_the_whole_rate() -> None:
    assert factors(3)[0] == 1


def test_warm_up_and_fall_multiply() -> None:
    assert factors(4, warmup=4, at=(2,)) == pytest.approx([0.25, 0.5, 0.075, 0.1])


def test_cosine_falls_from_the_end_of_the_warm_up_to_zero() -> None:
    cosine = factors(102, warmup=2, policy="cosine")
    assert cosine[:3] == pytest.approx([0.5, 1, 1])
    assert cosine[2 + 50] == pytest.approx(0.5)  # half way
    assert cosine[2 + 25] == pytest.approx(0.8536, abs=1e-4)  # (1 + cos 45 deg) / 2
    assert 0 < cosine[-1] < 0.001


@settings(deadline=None)
@given(
    total=st.integers(1, 200),
    warmup=st.one_of(st.integers(0, 300), st.floats(0, 0.99)),
    policy=st.sampled_from(["step", "cosine"]),
)
def test_factor_is_a_share_of_the_rate(total: int, warmup: float, policy: str) -> None:
    values = factors(total, warmup, policy, at=(0.6, 0.8))
    assert all(0 < value <= 1 for value in values)


def test_weights_of_linear_layers_decay_too() -> None:
    layers = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Conv2d(3, 2, 1))
    decayed, others = build_optimizer(load_config({"weight_decay": 0.1}), layers).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 4), (2, 3, 1, 1)]
    assert [tuple(parameter.shape) for parameter in others["params"]] == [(3,), (3,), (3,), (2,)]


@pytest.mark.parametrize(
    ("settings", "total", "problem"),
    [
        ({"warmup_iter": 500}, 150, "training (150 steps) ends during warm-up (500)"),
        ({"warmup_iter": 0.05}, 150, None),
        ({"lr_schedule": [40000, 60000], "warmup_iter": 0}, 60000, "lr_schedule 60000 is never reached"),
        ({"lr_schedule": [40000, 60000], "warmup_iter": 0}, 60001, None),
    ],
)
def test_a_schedule_that_does_not_fit_is_said(
    settings: dict[str, Any], total: int, problem: str | None
) -> None:
    problems = list(Schedule(load_config(settings), total).problems())
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]
