"""Searches for grids, compared with a plain loop, and on difficult rows."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dghlib.quantizers.calibration import Histogram
from dghlib.quantizers.scale_search import ACTIVATION_SEARCHES, WEIGHT_SEARCHES, activation_grid, weight_grid


def layer_with(rows: Tensor) -> nn.Linear:
    layer = nn.Linear(rows.shape[1], rows.shape[0])
    layer.weight = nn.Parameter(rows, requires_grad=False)
    return layer


def rows(count: int = 5, width: int = 40) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def error(row: Tensor, scale: float, zero_point: float, limits: tuple[int, int], power: float = 2.4) -> float:
    codes = ((row / scale).round() + zero_point).clamp(*limits)
    return ((codes - zero_point) * scale - row).abs().pow(power).sum().item()


def test_brecq_tries_80_ranges() -> None:
    tried = list(ACTIVATION_SEARCHES["shrink_80"](torch.zeros(1, 1), torch.ones(1, 1), 2))
    assert [scale.item() for scale, _ in tried] == pytest.approx([percent / 300 for percent in range(100, 20, -1)])


def test_the_first_of_equally_good_grids_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def both_exact(low: Tensor, high: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
        for scale in (0.5, 1.0):
            yield torch.full_like(low, scale), torch.zeros_like(low)

    monkeypatch.setitem(ACTIVATION_SEARCHES, "shrink_80", both_exact)
    grid = weight_grid(layer_with(torch.tensor([[0.0, 1.0]])), 2, "shrink_80")
    assert grid.scale.flatten().tolist() == [0.5]


@pytest.mark.parametrize(("search", "last", "power"), [("shrink_80", 20, 2.4), ("l2", 0, 2.0), ("l4", 0, 4.0)])
def test_searches_of_shrinking_ranges_equal_a_plain_loop(search: str, last: int, power: float) -> None:
    weight = rows()
    grid = weight_grid(layer_with(weight), 3, search)
    for row, scale, zero_point in zip(weight, grid.scale.flatten(), grid.zero_point.flatten(), strict=True):
        tries = []
        for percent in range(100, last, -1):
            low, high = row.min() * percent / 100, row.max() * percent / 100
            step = (high - low) / 7
            tries.append((error(row, step.item(), (-low / step).round().item(), (0, 7), power), step.item()))
        best, step = min(tries)
        assert error(row, scale.item(), zero_point.item(), (0, 7), power) == pytest.approx(best, rel=1e-4)
        assert scale.item() == pytest.approx(step, rel=1e-5)


def test_two_sided_finds_the_best_of_all_widths_and_zero_points() -> None:
    row = torch.cat([torch.linspace(-0.3, 0.3, 30), torch.tensor([4.0])])[None]
    grid = weight_grid(layer_with(row), 3, "two_sided")
    width = (row.max() - row.min()).item()
    best = min(error(row[0], width * k / 100 / 7, z, (0, 7)) for k in range(1, 101) for z in range(8))
    assert error(row[0], grid.scale.item(), grid.zero_point.item(), (0, 7)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("search", WEIGHT_SEARCHES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grids_cover_the_values_and_codes_fit(search: str, bits: int) -> None:
    weight = torch.stack(
        [rows()[0], rows()[0].abs() + 1, -rows()[0].abs() - 1, torch.zeros(40), torch.full((40,), 0.7)]
    )
    grid = weight_grid(layer_with(weight), bits, search)
    assert (grid.zero_point >= grid.quant_min).all()
    assert (grid.zero_point <= grid.quant_max).all()
    difference = (grid(weight) - weight).square().mean(1)
    assert (difference <= weight.square().mean(1) * 0.5 ** (2 * bits - 3)).all()
    assert grid(weight)[3].abs().max() == 0


@pytest.mark.parametrize("search", WEIGHT_SEARCHES)
def test_histograms_give_the_grid_of_the_values(search: str) -> None:
    values = rows(1, 20_000).relu() if search != "shrink_80" else rows(1, 20_000)
    histogram = Histogram()
    histogram.update(values)
    of_histogram = activation_grid(histogram, 4, search)
    of_values = weight_grid(layer_with(values), 4, search)
    assert of_histogram.scale.item() == pytest.approx(of_values.scale.item(), rel=0.03)
    assert of_histogram.zero_point.item() == of_values.zero_point.item()


def test_symmetric_grids_are_signed_only_for_negative_values() -> None:
    for values, signed in ((torch.tensor([-1.0, 2.0]), True), (torch.tensor([0.0, 2.0]), False)):
        histogram = Histogram()
        histogram.update(values)
        grid = activation_grid(histogram, 4, "symmetric_100")
        assert grid.signed is signed
        assert grid.zero_point == 0


def test_constant_and_zero_tensors_get_a_grid() -> None:
    for value in (0.0, 1.5, -2.0):
        histogram = Histogram()
        histogram.update(torch.full((100,), value))
        for search in ACTIVATION_SEARCHES:
            grid = activation_grid(histogram, 4, search)
            assert grid(torch.tensor(value)).item() == pytest.approx(value, rel=0.08)
