"""Histograms and threshold searches, compared with direct computation on the values."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dghlib.quantizers import calibration, ranges
from dghlib.quantizers.calibration import HALF_BINS, Histogram, power_of_two_above
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.ranges import SMALLEST_THRESHOLD, activation_threshold, weight_thresholds


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def histogram_of(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def error(x: Tensor, threshold: Tensor | float, bits: int, signed: bool) -> Tensor:
    """Return the squared error per row of `x`, computed from the values."""
    grid = UniformQuantizer.from_threshold(torch.as_tensor(threshold), bits=bits, signed=signed)
    return (grid(x) - x).square().sum(-1)


def test_batches_are_merged_into_the_histogram_of_all_values() -> None:
    """Later batches can have a much larger range than the first."""
    batches = [0.01 * randn(1000), randn(500, seed=1), 37 * randn(2000, seed=2), 1e-4 * randn(10, seed=3)]
    merged, whole = histogram_of(*batches), histogram_of(torch.cat(batches))
    assert merged.reach == whole.reach == power_of_two_above(max(b.abs().max().item() for b in batches))
    assert torch.equal(merged.counts, whole.counts)
    assert merged.counts.sum() == 3510
    assert (merged.minimum, merged.maximum) == (whole.minimum, whole.maximum)


def test_a_histogram_that_grows_beyond_its_resolution_keeps_signs() -> None:
    histogram = histogram_of(torch.tensor([-1e-4, 1e-4, 1e-4]), torch.tensor([1e6]))
    assert histogram.counts[:HALF_BINS].sum() == 1
    assert histogram.counts[HALF_BINS:].sum() == 3


@pytest.mark.parametrize("extreme", [2.0, -2.0])
def test_a_value_at_the_edge_is_counted(extreme: float) -> None:
    histogram = histogram_of(torch.tensor([extreme]))
    assert histogram.reach == 2.0
    assert histogram.counts[-1 if extreme > 0 else 0] == 1


def test_a_value_is_in_the_middle_of_its_bin() -> None:
    histogram = histogram_of(torch.tensor([0.3, -0.3]))
    width = 0.5 / 2048  # the reach is 0.5
    low, high = histogram.centres()[histogram.counts > 0].tolist()
    assert high == (int(0.3 / width) + 0.5) * width
    assert low == -high


def test_values_that_are_not_finite_are_refused() -> None:
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="values reach from"):
            histogram_of(torch.tensor([0.0, broken]))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "uniform"])
def test_activation_threshold_is_the_best_power_of_two(bits: int, kind: str) -> None:
    x = randn(5000, seed=bits)
    x = {
        "normal": x,
        "relu": 3 * x.relu(),
        "outlier": torch.cat([x, torch.tensor([60.0])]),
        "uniform": torch.linspace(0, 0.9, 5000),
    }[kind]
    signed = bool((x < 0).any())
    candidates = [2.0**power for power in range(-8, 9)]
    errors = [error(x, threshold, bits, signed).item() for threshold in candidates]
    found = activation_threshold(histogram_of(*x.split(3000)), bits, signed)
    assert found == candidates[errors.index(min(errors))]


def test_sixteen_bits_clip_nothing() -> None:
    """Rounding is finer than the histogram's resolution: the narrowest grid that contains every value is right."""
    assert activation_threshold(histogram_of(3 * randn(1000).relu()), 16, signed=False) == 16.0


def test_a_grid_may_reach_beyond_the_largest_value() -> None:
    """With 2 unsigned bits, the grid up to 2 contains 1; the grid up to 1 ends at 0.75."""
    assert activation_threshold(histogram_of(torch.full((100,), 0.9999)), 2, signed=False) == 2.0


def test_constant_tensors_have_a_threshold() -> None:
    assert activation_threshold(histogram_of(torch.zeros(100)), 8, signed=False) == SMALLEST_THRESHOLD
    threshold = activation_threshold(histogram_of(torch.full((100,), 0.75)), 8, signed=False)
    assert error(torch.full((1, 100), 0.75), threshold, 8, False) < 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_thresholds_are_the_best_of_each_channel(bits: int) -> None:
    weight = randn(12, 64) * torch.logspace(-3, 1, 12)[:, None]
    found = weight_thresholds(weight, bits, "power_of_two")
    assert torch.equal(found.log2(), found.log2().round())
    for power in range(-20, 8):
        candidate = torch.full((12, 1), 2.0**power)
        assert (error(weight, found[:, None], bits, True) <= error(weight, candidate, bits, True)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_free_thresholds_beat_powers_of_two_and_nearly_equal_a_dense_search(bits: int) -> None:
    weight = randn(12, 512) * torch.logspace(-3, 1, 12)[:, None]
    free = error(weight, weight_thresholds(weight, bits, "free")[:, None], bits, True)
    halved = error(weight, weight_thresholds(weight, bits, "power_of_two")[:, None], bits, True)
    largest = weight.abs().amax(1, keepdim=True)
    dense = torch.stack([error(weight, largest * f, bits, True) for f in torch.linspace(0.05, 2.2, 400)])
    assert free.sum() < halved.sum()
    assert (free <= 1.1 * dense.amin(0)).all()


def test_channels_of_zeros_and_of_one_weight_have_thresholds() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.25, 0.0], [-1.0, 0.0]])
    for search in ("power_of_two", "free"):
        thresholds = weight_thresholds(weight, 4, search)
        assert thresholds[0] == SMALLEST_THRESHOLD
        torch.testing.assert_close(error(weight, thresholds[:, None], 4, True), torch.zeros(3))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("search", ["power_of_two", "free"])
def test_searches_that_stop_early_equal_complete_ones(search: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = randn(12, 300) * torch.logspace(-4, 1, 12)[:, None]
    weight[3, 5], weight[4], weight[5] = 100.0, 0.0, weight[5].sign()
    tried, on_grid = [], ranges._on_grid

    def counted(*given: Any, **named: Any) -> Tensor:
        tried.append(bits)
        return on_grid(*given, **named)

    monkeypatch.setattr(ranges, "_on_grid", counted)
    found, early = weight_thresholds(weight, bits, search), len(tried)
    monkeypatch.setattr(ranges, "_HOPELESS", float("inf"))
    assert torch.equal(found, weight_thresholds(weight, bits, search))
    assert early < len(tried) - early or bits == 2  # at 2 bits, no grid can be skipped


@pytest.mark.parametrize("kind", ["normal", "sparse"])
def test_counts_do_not_depend_on_the_number_of_counting_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(3, 7, 50, 131) if kind == "normal" else (randn(3, 7, 50, 131) - 1.5).relu()
    found = histogram_of(x)
    monkeypatch.setattr(calibration, "_ROWS", 1)
    calibration._rows.cache_clear()
    assert torch.equal(found.counts, histogram_of(x).counts)
    calibration._rows.cache_clear()
    assert found.counts.sum() == x.numel()
    expected = torch.histogram(
        x.double().clamp(-found.reach, found.reach), 2 * HALF_BINS, range=(-found.reach, found.reach)
    )
    assert (found.counts - expected.hist).abs().max() <= 2
