"""Tensors of a shared layer have 1 site and 1 grid, with ranges over all calls."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.quantizers import hptq
from dghlib.quantizers.calibration import observe
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.placement import every_tensor
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.sites import site_of
from dghlib.quantizers.units import units_of


class SharedHead(nn.Module):
    """A layer, then a head of 2 layers that is called with its output, and with half of it, twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1)
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.logits = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        level = self.relu(self.body(images))
        levels = [level, 2 * nn.functional.max_pool2d(level, 2)]
        answers = [self.logits(self.relu(self.norm(self.conv(features)))).flatten(2) for features in levels]
        return {"first": answers[0], "all": torch.cat(answers, dim=2)}


def shared_head() -> FloatModel:
    torch.manual_seed(0)
    net = SharedHead().eval()
    return FloatModel(name="shared_head", net=net, image_shape=(3, 8, 6), mean=(0.5,) * 3, std=(0.3,) * 3)


def test_calls_of_a_shared_layer_share_a_site() -> None:
    sites = {node.name: site_of(node) for node in folded_graph(shared_head()).graph.nodes}
    assert sites["conv_1"] == "conv"
    assert sites["relu_2"] == "relu_1"  # after the shared layer
    assert sites["logits_1"] == "logits"
    assert sites["relu"] == "relu"  # the same module after another layer
    assert sites["max_pool2d"] == "max_pool2d"


def test_a_placement_contains_a_site_once() -> None:
    assert every_tensor(folded_graph(shared_head())) == ["images", "relu", "mul", "relu_1", "logits", "cat"]


def test_ranges_cover_all_calls() -> None:
    model = shared_head()
    graph = folded_graph(model)
    images = torch.randn(4, *model.image_shape)
    histogram = observe(graph, ["logits"], images, batch_size=4).histograms["logits"]
    wanted = model.net(images)["all"]  # of both levels; the flatten only moves values
    assert histogram.minimum == pytest.approx(wanted.min().item())
    assert histogram.counts.sum() == wanted.numel()


def test_all_calls_use_the_same_quantizer() -> None:
    model = shared_head()
    images = torch.randn(4, *model.image_shape)
    quantized = hptq.quantize(model, images, hptq.Config())
    assert set(quantized.activation_quantizers()) == {"images", "relu", "mul", "relu_1", "logits", "cat"}
    calls = [node.name for node in quantized.graph.graph.nodes if node.target == "activation_quantizers.logits"]
    assert len(calls) == 2
    answer, wanted = quantized(images), model.net(images)
    assert (answer["all"] - wanted["all"]).abs().max() < 0.05 * wanted["all"].abs().max()


def test_a_saved_model_gives_the_same_outputs(tmp_path: Path) -> None:
    model = shared_head()
    images = torch.randn(4, *model.image_shape)
    quantized = hptq.quantize(model, images, hptq.Config())
    quantized.save(tmp_path / "file")
    again = QuantizedModel.load(tmp_path / "file", model)
    assert again(images)["all"].equal(quantized(images)["all"])


def test_layers_after_the_last_cut_are_units_too() -> None:
    names = {layer for unit in units_of(folded_graph(shared_head()), "block") for layer in unit.layers}
    assert names == {"body", "conv", "logits"}
