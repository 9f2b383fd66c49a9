"""The input of an activation function has the grid that is best for its output."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.quantizers import hptq
from dghlib.quantizers.calibration import Histogram
from dghlib.quantizers.tables import grid_for


def seen(values: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def error(grid: nn.Module, values: Tensor) -> float:
    return (F.hardswish(grid(values)) - F.hardswish(values)).square().mean().item()


def test_no_codes_are_used_where_a_function_is_flat() -> None:
    """For a hard swish from -20 to 5, only -3 to 5 matter: steps of 1/32; the full range would need steps of 1/8."""
    values = torch.linspace(-20, 5, 10_000)
    grid = grid_for(F.hardswish, seen(values), 8)
    assert grid.scale == 1 / 32
    low, high = grid.from_codes(torch.tensor([0, 255])).tolist()
    assert low <= -2.5
    assert high > 4.9
    wide = hptq.activation_quantizer(seen(values), 8)
    assert error(grid, values) < error(wide, values) / 4


def test_an_identity_gets_the_grid_of_all_values() -> None:
    values = torch.linspace(-1, 1, 1000)
    grid = grid_for(torch.clone, seen(values), 8)
    assert (grid.scale, grid.zero_point) == (1 / 128, 128)


class Gated(nn.Module):
    """A gate of channels, like squeeze and excitation, with functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gate, self.end = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.conv(x)), negative_slope=0.2)
        return self.end(self.gate(x.mean((2, 3), keepdim=True)).sigmoid() * x)


@pytest.mark.parametrize(
    ("settings", "bits"),
    [({}, 8), ({"activation_bits": 4}, 8), ({"activation_bits": 16}, 16), ({"table_inputs": False}, None)],
)
def test_sums_before_curved_functions_have_at_least_eight_bits(settings: dict, bits: int | None) -> None:
    torch.manual_seed(0)
    shape = (3, 8, 8)
    model = FloatModel(name="net", net=Gated().eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    quantized = hptq.quantize(model, torch.randn(8, *shape), hptq.Config(**settings))
    grids = quantized.activation_quantizers()
    tables = {"conv": bits, "gate": bits} if bits else {}
    assert {name: grid.bits for name, grid in grids.items() if name in ("conv", "gate")} == tables
    rest = {grid.bits for name, grid in grids.items() if name not in tables}
    assert rest == {settings.get("activation_bits", 8)}
    order = [node.name for node in quantized.graph.graph.nodes if node.name in grids]
    assert list(grids) == order


def test_networks_in_float_have_no_tables() -> None:
    shape = (3, 8, 8)
    model = FloatModel(name="net", net=Gated().eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    quantized = hptq.quantize(model, torch.randn(8, *shape), hptq.Config(activation_bits=32))
    assert not quantized.activation_quantizers()
