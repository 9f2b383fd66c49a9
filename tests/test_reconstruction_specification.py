"""Reconstruction as AdaRound, LSQ and GENIE describe it: a plain loop over one unit; `learn` gives the same result.

The unit is a layer and a ReLU whose output has a grid. A weight is the value of its rounded-down code plus h(V) times
the step; V, the steps of weights and the step of the activation each have their own rate.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dghlib.models import FloatModel
from dghlib.quantizers import adaround, reconstruction
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.learners import LearnedRounding, LearnedStep
from dghlib.quantizers.reconstruction import Settings, Sweep, learn
from dghlib.quantizers.unit_data import UnitData
from dghlib.seeds import stream

STEPS = 40
WEIGHT = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
TARGETS = F.linear(INPUTS, WEIGHT).relu()
SCALE, ZERO_POINT = torch.linspace(0.3, 0.5, 5)[:, None], torch.tensor([[3], [4], [2], [3], [4]])  # 3 bits, 0 to 7
OUTPUT_SCALE = torch.tensor(0.4)  # 4 bits, 0 to 15


class Unit(nn.Module):
    """The inputs of `learn`: a layer whose weight is learned, and a ReLU whose grid is learned."""

    def __init__(self, settings: Settings):
        super().__init__()
        grid = UniformQuantizer(SCALE, ZERO_POINT, bits=3, signed=False)
        self.rounding = LearnedRounding(grid, WEIGHT, settings.scale_rate > 0)
        self.step = LearnedStep(UniformQuantizer(OUTPUT_SCALE, torch.tensor(0), bits=4, signed=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(F.linear(x, self.rounding(WEIGHT)).relu())


def learned(settings: Settings, sweep: Sweep) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(2)
    data = UnitData(INPUTS, None, TARGETS, 0.0, draws, draws, torch.device("cpu"), settings.batch_size)
    unit = Unit(settings)
    learn(unit, [unit.rounding], [unit.step], data, sweep, settings, tqdm(disable=True))
    return {"V": unit.rounding.logits, "scale": unit.rounding.scale, "output scale": unit.step.scale}


def rounded_up(v: Tensor) -> Tensor:
    """Return h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)."""
    return (1.2 / (1 + torch.exp(-v)) - 0.1).clamp(0, 1)


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    return x + (rounded - x).detach()


def minibatches(size: int) -> Iterator[Tensor]:
    """Yield rows in one random order after another, so that all are drawn equally often."""
    draws = torch.Generator().manual_seed(2)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += torch.randperm(len(INPUTS), generator=draws).tolist()
        rows, waiting = waiting[:size], waiting[size:]
        yield torch.tensor(rows)


def in_full(settings: Settings, power: float) -> dict[str, Tensor]:
    floors = (WEIGHT / SCALE).floor()
    rest = WEIGHT / SCALE - floors
    v = -torch.log(1.2 / (rest + 0.1) - 1)
    torch.testing.assert_close(rounded_up(v), rest)  # it starts at the float weight
    v.requires_grad_()
    scale, output_scale = SCALE.clone().requires_grad_(), OUTPUT_SCALE.clone().requires_grad_()
    fastest = 0.01 * SCALE.median().item()  # at most 1/100 of a step
    rates = [settings.rounding_rate, min(settings.scale_rate, fastest), settings.step_rate]
    optimizers = [torch.optim.Adam([values]) for values in (v, scale, output_scale)]
    for step, rows in zip(range(STEPS), minibatches(settings.batch_size), strict=False):
        codes = (floors + rounded_up(v) + ZERO_POINT).clamp(0, 7) - ZERO_POINT
        steps = F.linear(INPUTS[rows], codes * scale).relu() / output_scale
        whole = straight_through(steps.round(), steps)
        output = torch.where(steps.round() > 15, 15.0, whole) * output_scale
        error = (output - TARGETS[rows]).abs() ** power
        loss = error.sum(1).mean()
        if step >= STEPS / 5:  # then rounding is penalized
            done = (step - STEPS / 5) / (STEPS - STEPS / 5)
            falling = (1 + math.cos(math.pi * done)) / 2 if settings.cosine else 1 - done
            strictness = 2 + 18 * falling
            loss = loss + settings.penalty * (1 - (2 * rounded_up(v) - 1).abs() ** strictness).sum()
        for values in (v, scale, output_scale):
            values.grad = None
        loss.backward()
        cosine = (1 + math.cos(math.pi * step / STEPS)) / 2
        for number, optimizer in enumerate(optimizers):
            optimizer.param_groups[0]["lr"] = rates[number] * (1 if number == 0 else cosine)
            optimizer.step()
    return {"V": v, "scale": scale, "output scale": output_scale}


@pytest.mark.parametrize(
    ("settings", "power"),
    [
        ({"scale_rate": 1e-3, "step_rate": 4e-3, "penalty": 0.1}, 2.0),
        ({"scale_rate": 1.0, "step_rate": 4e-3, "penalty": 0.1, "cosine": True}, 2.0),
        ({"step_rate": 4e-3, "penalty": 0.02}, 2.4),
    ],
)
def test_learning_a_unit_equals_the_plain_loop(settings: dict[str, Any], power: float) -> None:
    wanted = Settings(batch_size=5, rounding_rate=0.05, **settings)
    sweep = Sweep(weights=True, steps=True, iterations=STEPS, inputs="float", power=power)
    found, expected = learned(wanted, sweep), in_full(wanted, power)
    assert (expected["V"].detach().abs() > 2).sum() >= 5, "some roundings are decided"
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4, msg=name)


def test_minibatches_are_drawn_by_seed_and_unit(tiny_model: FloatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def noted(*purpose: Any) -> torch.Generator:
        seen.append(purpose)
        return stream(*purpose)

    monkeypatch.setattr(reconstruction, "stream", noted)
    images = torch.randn(8, 3, 8, 8)
    for seed in (4, 5):
        adaround.quantize(tiny_model, images, adaround.Config(iterations=2, seed=seed, batch_size=4))
    assert {purpose[0] for purpose in seen} == {4, 5}
    assert len(set(seen)) == len(seen), "every unit has its own random stream"
