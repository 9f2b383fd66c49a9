"""Biases are on the grids of the sums that they enter."""

import dataclasses
import logging

import pytest
import torch
from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel, genie_m, hptq
from dghlib.quantizers.biases import LARGEST, bias_steps, grid_of
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import QuantizedLayer


def as_model(net: nn.Module) -> FloatModel:
    return FloatModel(name="net", net=net.eval(), image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def noise(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def layer_of(quantized: QuantizedModel, path: str) -> QuantizedLayer:
    layer = quantized.graph.get_submodule(path)
    assert isinstance(layer, QuantizedLayer)
    return layer


def test_groups_of_a_transposed_convolution_share_grids() -> None:
    scales = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    grid = UniformQuantizer(scales, torch.zeros_like(scales), bits=8, signed=True)
    layer = QuantizedLayer(nn.ConvTranspose2d(4, 6, 2, groups=2), grid)
    assert bias_steps(layer, torch.tensor(0.5)).tolist() == [0.5, 1.0, 1.5, 0.5, 1.0, 1.5]


def codes_of_biases(quantized: QuantizedModel) -> dict[str, Tensor]:
    """Return every bias that enters a sum of codes, in units of that sum's step, by path."""
    found = {}
    for node in quantized.graph.graph.nodes:
        if str(node.target) in quantized.weight_quantizers():
            layer, grid = layer_of(quantized, str(node.target)), grid_of(quantized.graph, node.all_input_nodes[0])
            if grid is not None and layer.layer.bias is not None:
                found[node.name] = layer.layer.bias.double() / bias_steps(layer, grid.scale)
    return found


def are_whole(codes: Tensor) -> bool:
    return torch.allclose(codes, codes.round(), rtol=1e-6, atol=0)


def test_every_bias_is_a_whole_number_of_steps(tiny_model: FloatModel) -> None:
    found = codes_of_biases(hptq.quantize(tiny_model, noise(), hptq.Config()))
    assert len(found) >= 3
    assert all(torch.equal(codes, codes.round()) for codes in found.values())
    config = genie_m.Config(iterations=2, placement="every_tensor")
    assert all(are_whole(codes) for codes in codes_of_biases(genie_m.quantize(tiny_model, noise(), config)).values())


def test_biases_stay_float_as_in_the_papers(tiny_model: FloatModel) -> None:
    whole, free = (
        hptq.quantize(tiny_model, noise(), dataclasses.replace(hptq.Config(), integer_biases=integers))
        for integers in (True, False)
    )
    assert not any(are_whole(codes) for codes in codes_of_biases(free).values())
    for name, codes in codes_of_biases(whole).items():
        assert torch.equal(codes, codes_of_biases(free)[name].round())


@pytest.mark.parametrize(
    "config",
    [
        hptq.Config(activation_bits=32),
        hptq.Config(activation_bits=16),
        hptq.Config(weight_bits=16),
        genie_m.Config(iterations=1, placement="brecq"),
    ],
)
def test_sums_of_float_tensors_keep_float_biases(config: hptq.Config | genie_m.Config, tiny_model: FloatModel) -> None:
    """With the placement of BRECQ, the first layer reads images in float."""
    method = hptq if isinstance(config, hptq.Config) else genie_m
    rounded, free = (
        layer_of(
            method.quantize(tiny_model, noise(), dataclasses.replace(config, integer_biases=integers)), "conv1"
        ).layer.bias
        for integers in (True, False)
    )
    assert rounded is not None
    assert free is not None
    assert torch.equal(rounded, free)


class Twice(nn.Module):
    """One layer that reads tensors of 2 grids."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x) * 9)


def test_a_layer_with_inputs_of_several_grids_has_its_bias_on_all_grids() -> None:
    torch.manual_seed(0)
    found = codes_of_biases(hptq.quantize(as_model(Twice()), noise(), hptq.Config()))
    assert len(found) == 2
    assert all(torch.equal(codes, codes.round()) for codes in found.values())


@pytest.mark.parametrize("scale", [0.0, 1e-4])
def test_a_bias_beyond_32_bits_is_reported_and_clipped(scale: float, caplog: pytest.LogCaptureFixture) -> None:
    """Folding a batch norm of a pruned channel leaves a bias and no weight: nothing is lost or reported."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    conv.state_dict()["weight"][0] *= scale
    conv.state_dict()["bias"][0] = 50.0
    model = as_model(nn.Sequential(conv, nn.ReLU()))
    with caplog.at_level(logging.WARNING):
        quantized = hptq.quantize(model, noise(), hptq.Config(bias_correction=False))
    ((codes),) = codes_of_biases(quantized).values()
    assert codes.abs().max() <= LARGEST
    assert ("layer 0: in 1 channels the bias exceeds 32 bits" in caplog.text) == (scale > 0)
    bias = layer_of(quantized, "0").layer.bias
    assert bias is not None
    assert bias[0].item() == pytest.approx(50.0, rel=1e-6)


def test_biases_of_grouped_transposed_convolutions_are_integers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2))
    found = codes_of_biases(hptq.quantize(as_model(net), noise(), hptq.Config()))
    assert [len(codes) for codes in found.values()] == [4, 6]
    assert all(torch.equal(codes, codes.round()) for codes in found.values())
