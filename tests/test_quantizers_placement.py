"""Which tensors are quantized, with how many bits: counts on networks of the papers, patterns on small ones."""

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from dghlib.models import FloatModel
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.placement import PLACEMENTS, assign_bits, every_tensor


def graph_of(net: nn.Module, size: int = 32) -> fx.GraphModule:
    model = FloatModel(name="net", net=net.eval(), image_shape=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3)
    return folded_graph(model)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 31), ("resnet50", 72), ("mobilenet_v2", 65)])
def test_counts_equal_those_of_the_toolkit(name: str, count: int) -> None:
    """The numbers of quantizers that MCT 2.6.1 places."""
    assert len(every_tensor(graph_of(getattr(torchvision.models, name)()))) == count


@pytest.mark.parametrize("placement", ["brecq", "genie"])
@pytest.mark.parametrize(("name", "full"), [("resnet18", 18), ("resnet50", 50), ("mobilenet_v2", 53)])
def test_counts_equal_those_of_the_reconstruction_papers(name: str, full: int, placement: str) -> None:
    """Their code has 1 less: the logits, which only "full" bits quantize. Weights: 21, 54 and 53, 2 with 8 bits."""
    graph = graph_of(getattr(torchvision.models, name)())
    tensors = PLACEMENTS[placement](graph)
    assert len(assign_bits(graph, tensors, 4, 4, "full").activations) == full
    academic = assign_bits(graph, tensors, 4, 4, "academic")
    assert len(academic.activations) == full - 1
    assert sorted(academic.activations.values())[-2:] == [8, 8]  # the inputs of the second and the last layer
    assert sorted(academic.activations.values())[-3] == 4
    assert list(academic.weights.values()).count(8) == 2


@pytest.mark.parametrize(("name", "count"), [("resnet18", 17), ("resnet50", 49), ("mobilenet_v2", 35)])
def test_relu_only_quantizes_outputs_of_relus(name: str, count: int) -> None:
    assert len(PLACEMENTS["relu_only"](graph_of(getattr(torchvision.models, name)()))) == count


def test_tensors_that_brecq_and_genie_leave_in_float_in_a_resnet() -> None:
    graph = graph_of(torchvision.models.resnet18())
    brecq, genie = PLACEMENTS["brecq"](graph), PLACEMENTS["genie"](graph)
    assert set(every_tensor(graph)) - set(brecq) >= {"images", "layer1_0_conv2", "layer2_0_downsample_0", "avgpool"}
    assert set(genie) - set(brecq) == {"avgpool"}  # the input of the last layer
    assert set(brecq) - set(genie) == {"layer4_1_relu_1"}  # no layer reads this tensor


def test_tensors_of_a_resnet_block_by_name() -> None:
    tensors = every_tensor(graph_of(torchvision.models.resnet18()))
    assert tensors[:6] == ["images", "relu", "layer1_0_relu", "layer1_0_conv2", "layer1_0_relu_1", "layer1_1_relu"]
    assert "layer2_0_downsample_0" in tensors
    assert tensors[-2:] == ["avgpool", "fc"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.act, self.pool = nn.Hardswish(), nn.MaxPool2d(2)
        self.norm, self.linear = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        read_twice = self.act(x) + x  # both are quantized: the sum before the activation has another reader
        left, right = self.pool(self.other(read_twice)).chunk(2, dim=1)
        x = torch.cat([left.relu(), left, right, right.permute(0, 1, 3, 2)], dim=1)
        x = self.norm(x).relu() * 2
        x = x.view(x.shape[0], 8, -1).mean(2)
        return torch.sigmoid(self.linear(x))


def test_patterns_of_layers_by_name() -> None:
    assert every_tensor(graph_of(Block())) == [
        "images",
        "conv",
        "act",
        "add",
        "other",
        "relu",
        "cat",
        "relu_1",  # together with the batch norm that cannot fold
        "mul",
        "mean",
        "sigmoid",  # together with the linear layer
    ]


@pytest.mark.parametrize("written", [nn.ReLU(), nn.ReLU6(), torch.relu, torch.nn.functional.relu6])
def test_a_relu_and_the_addition_before_it_have_one_quantizer(written: object) -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = written

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + 1)  # type: ignore[operator]

    assert [name for name in every_tensor(graph_of(Add())) if name.startswith("add")] == []


class Chain(nn.Module):
    """5 layers: a, b, c, d, last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.a(x).relu(), 2)
        x = self.c(self.b(x).relu()).relu().mean((2, 3))
        return self.last(x).flatten(1)


def test_full_bits_are_equal_for_all_layers() -> None:
    graph = graph_of(Chain())
    bits = assign_bits(graph, every_tensor(graph), 3, 4, "full")
    assert bits.weights == dict.fromkeys(["a", "b", "c", "last"], 3)
    assert bits.activations == dict.fromkeys(["images", "relu", "relu_1", "relu_2", "mean", "last"], 4)


def test_academic_bits_are_eight_at_the_ends() -> None:
    """The input of layer 2 is found through the max pooling, the logits through the reshape."""
    graph = graph_of(Chain())
    bits = assign_bits(graph, every_tensor(graph), 3, 4, "academic")
    assert bits.weights == {"a": 8, "b": 3, "c": 3, "last": 8}
    assert bits.activations == {"images": 8, "relu": 8, "relu_1": 4, "relu_2": 4, "mean": 8}


def test_academic_bits_never_reduce_bits() -> None:
    graph = graph_of(Chain())
    bits = assign_bits(graph, every_tensor(graph), 16, 32, "academic")
    assert set(bits.weights.values()) == {16}
    assert bits.activations == {}


def test_float_tensors_have_no_quantizer() -> None:
    graph = graph_of(Chain())
    bits = assign_bits(graph, every_tensor(graph), 32, 8, "full")
    assert bits.weights == {}
    assert len(bits.activations) == 6
