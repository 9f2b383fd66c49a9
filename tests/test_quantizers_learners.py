"""Learned rounding and steps: their start, their gradients, and their final values."""

import pytest
import torch
from torch import Tensor, nn

from dghlib.quantizers.grid import UniformQuantizer, fake_quantize
from dghlib.quantizers.layers import QuantizedLayer
from dghlib.quantizers.learners import (
    LearnedRounding,
    LearnedStep,
    coins,
    keep_positive,
    rectified_sigmoid,
    rounding_penalty,
)
from dghlib.quantizers.scale_search import weight_grid


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_layer() -> nn.Conv2d:
    layer = nn.Conv2d(4, 6, 3)
    nn.init.normal_(layer.weight, generator=generator())
    return layer.requires_grad_(False)


def test_rounding_starts_at_the_float_weight() -> None:
    layer = random_layer()
    grid = weight_grid(layer, 8, "shrink_80")
    learned = LearnedRounding(grid, layer.weight)
    inside = (layer.weight / grid.scale + grid.zero_point).clamp(0, 255) == layer.weight / grid.scale + grid.zero_point
    torch.testing.assert_close(learned(layer.weight)[inside], layer.weight[inside], rtol=1e-4, atol=1e-5)


def test_undecided_roundings_end_at_the_nearest_code() -> None:
    layer = random_layer()
    grid = weight_grid(layer, 3, "shrink_80")
    quantized = QuantizedLayer(layer, grid)
    nearest = quantized.quantized_weight()
    LearnedRounding(grid, layer.weight).harden(quantized)
    torch.testing.assert_close(quantized.quantized_weight(), nearest)
    torch.testing.assert_close(quantized.layer.weight, nearest)  # the weight itself lies on the grid


def test_learned_roundings_go_up_or_down_by_hand() -> None:
    weight = torch.tensor([[0.2, 0.7, -0.4, 5.0]])
    grid = UniformQuantizer(torch.tensor([[0.5]]), torch.tensor([[2]]), bits=3, signed=False)
    layer = nn.Linear(4, 1)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    learned = LearnedRounding(grid, weight)
    learned.logits.data = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    quantized = QuantizedLayer(layer, grid)
    learned.harden(quantized)
    # floors of weight / 0.5: 0, 1, -1, 10; up, down, up, up; codes 0..7 minus 2 end at 5
    assert quantized.quantized_weight().tolist() == [[0.5, 0.5, 0.0, 2.5]]


def test_a_learned_scale_changes_the_weight_at_fixed_codes() -> None:
    layer = random_layer()
    learned = LearnedRounding(weight_grid(layer, 4, "shrink_100"), layer.weight, learn_scale=True)
    before = learned(layer.weight)
    learned.scale.data *= 2
    torch.testing.assert_close(learned(layer.weight), 2 * before)
    learned(layer.weight).sum().backward()
    codes = (before / (learned.scale / 2)).detach()
    torch.testing.assert_close(learned.scale.grad, codes.sum((1, 2, 3), keepdim=True), rtol=1e-4, atol=1e-4)


def test_penalty_by_hand() -> None:
    logits = torch.tensor([0.0, 100.0, -100.0])
    assert rectified_sigmoid(logits).tolist() == [0.5, 1.0, 0.0]
    assert rounding_penalty(logits, 2.0).item() == 1.0  # only the undecided rounding is penalized
    assert rounding_penalty(torch.tensor([1.0]), 20.0) > rounding_penalty(torch.tensor([1.0]), 2.0)


@pytest.mark.parametrize("zero_point", [0, 3])
@pytest.mark.parametrize("kept_part", [None, 0.5])
def test_gradients_equal_the_plain_formula(zero_point: int, kept_part: float | None) -> None:
    """The plain formula in 6 steps is the specification; the library's is as exact, and several times faster."""
    x = torch.randn(2, 3, 4, 4, generator=generator()).requires_grad_()
    grad = torch.randn(2, 3, 4, 4, generator=generator(1))
    kept = None if kept_part is None else coins(x, kept_part, generator(2))
    scale, plain_scale = (torch.tensor(0.3, requires_grad=True) for _ in range(2))

    fake_quantize(x, scale, torch.tensor(zero_point), 0, 7, kept).backward(grad)
    fast, x.grad = x.grad, None
    steps = x / plain_scale
    unclamped = steps.round().detach() + (steps - steps.detach()) + zero_point
    codes = torch.where((unclamped >= 0) & (unclamped <= 7), unclamped, unclamped.detach().clamp(0, 7))
    plain: Tensor = (codes - zero_point) * plain_scale
    if kept is not None:
        plain = torch.where(kept.bool(), x, plain)
    plain.backward(grad)

    torch.testing.assert_close(fast, x.grad)
    torch.testing.assert_close(scale.grad, plain_scale.grad, rtol=1e-4, atol=1e-4)


def test_gradients_per_channel_equal_those_of_single_channels() -> None:
    x = torch.randn(3, 10, generator=generator(), requires_grad=True)
    scale = torch.tensor([[0.1], [0.2], [0.4]], requires_grad=True)
    fake_quantize(x, scale, torch.zeros(3, 1), -4, 3).square().sum().backward()
    assert scale.grad is not None
    for channel in range(3):
        alone = scale.detach()[channel, 0].clone().requires_grad_()
        fake_quantize(x.detach()[channel], alone, torch.tensor(0), -4, 3).square().sum().backward()
        torch.testing.assert_close(scale.grad[channel, 0], alone.grad, rtol=1e-4, atol=1e-4)


def test_scaled_gradients_are_divided_as_in_lsq() -> None:
    x = torch.randn(2, 3, 4, 4, generator=generator())
    grid = UniformQuantizer(torch.tensor(0.2), torch.tensor(0), bits=4, signed=False)
    plain, scaled = LearnedStep(grid), LearnedStep(grid, scaled_gradient=True)
    torch.testing.assert_close(plain(x), scaled(x))
    plain(x).sum().backward()
    scaled(x).sum().backward()
    assert plain.scale.grad is not None
    torch.testing.assert_close(scaled.scale.grad, plain.scale.grad / (x.numel() * 15) ** 0.5)


def test_coins_are_fair_reproducible_and_new_at_each_call() -> None:
    like = torch.empty(4, 8, 32, 33)
    for probability in (0.25, 0.5, 1.0, 0.0):
        assert coins(like, probability, generator()).mean().item() == pytest.approx(probability, abs=0.01)
    assert not coins(like, 0.0, generator()).any()
    first = generator()
    a, b = coins(like, 0.5, first), coins(like, 0.5, first)
    assert torch.equal(a, coins(like, 0.5, generator()))
    assert (a == b).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert set(a.unique().tolist()) == {0.0, 1.0}
    assert coins(torch.empty(3, 5), 0.5, generator()).shape == (3, 5)


def test_values_kept_by_chance_stay_in_float() -> None:
    x = torch.randn(1, 4, 8, 8, generator=generator())
    grid = UniformQuantizer(torch.tensor(1.0), torch.tensor(0), bits=2, signed=True)
    step = LearnedStep(grid, keep_float=0.5, generator=generator())
    result = step(x)
    assert ((result == x) | (result == grid(x))).all()
    assert 0.3 < (result == x).float().mean() < 0.7


def test_steps_stay_positive() -> None:
    scale = nn.Parameter(torch.tensor([-1.0, 0.0, 2.0]))
    keep_positive([scale])
    assert (scale > 0).all()
    assert scale[2] == 2
