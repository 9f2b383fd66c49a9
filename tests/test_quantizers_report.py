"""The reports: their numbers by hand, and the worst tensor, weight and unit."""

import math

import pytest
import torch
from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers import brecq, hptq, noise_report, unit_errors
from dghlib.quantizers.grid import UniformQuantizer


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_tensor_with_the_coarsest_grid_is_the_worst(tiny_model: FloatModel) -> None:
    quantized = hptq.quantize(tiny_model, images(), hptq.Config())
    coarse = UniformQuantizer(torch.tensor(4.0), torch.tensor(0), bits=2, signed=False)
    quantized.set_activation_quantizers({"relu": coarse})
    report = noise_report(tiny_model, quantized, images())
    worst = min(report, key=lambda noise: noise.own)
    assert (worst.name, worst.bits) == ("relu", 2)
    own = {noise.name: noise.own for noise in report}
    assert own["relu"] < 10 < own["relu_1"]  # later tensors have errors too, but not from their own rounding
    accumulated = {noise.name: noise.accumulated for noise in report}
    assert accumulated["relu_1"] < own["relu_1"] - 10
    assert report == sorted(report, key=lambda noise: noise.accumulated)
    assert len(report) == len(quantized.weight_quantizers()) + len(quantized.activation_quantizers())


def test_ratios_by_hand_do_not_depend_on_the_batch_size(tiny_model: FloatModel) -> None:
    quantized = hptq.quantize(tiny_model, images(), hptq.Config(activation_bits=3))
    one, many = (noise_report(tiny_model, quantized, images(), batch_size=size) for size in (20, 3))
    for left, right in zip(one, many, strict=True):
        assert left.name == right.name
        assert left.accumulated == pytest.approx(right.accumulated, abs=0.01)
    error = (quantized.activation_quantizers()["images"](images()) - images()).square().sum()
    by_hand = 10 * math.log10(float(images().square().sum() / error))
    assert next(noise.own for noise in one if noise.name == "images") == pytest.approx(by_hand, abs=1e-3)


def test_each_bit_reduces_noise_by_six_decibels(tiny_model: FloatModel) -> None:
    means = []
    for bits in (4, 5, 6):
        quantized = hptq.quantize(tiny_model, images(), hptq.Config(weight_bits=bits, weight_thresholds="free"))
        weights = [noise for noise in noise_report(tiny_model, quantized, images()) if noise.kind == "weight"]
        means.append(sum(noise.own for noise in weights) / len(weights))
    assert means[1] - means[0] == pytest.approx(6, abs=1.5)
    assert means[2] - means[1] == pytest.approx(6, abs=1.5)


def test_units_are_listed_worst_first_if_the_method_learns(tiny_model: FloatModel) -> None:
    learned = brecq.quantize(tiny_model, images(), brecq.Config(iterations=20, step_iterations=10))
    errors = unit_errors(learned)
    assert {error.learned for error in errors} == {"weights", "steps"}
    assert [error.after for error in errors] == sorted((error.after for error in errors), reverse=True)
    assert all(0 < error.after < 1 for error in errors)
    assert unit_errors(hptq.quantize(tiny_model, images(), hptq.Config())) == []
