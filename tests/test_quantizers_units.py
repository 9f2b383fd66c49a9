"""Units of reconstruction: found in networks of the papers and in unusual ones, and run alone."""

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from dghlib.models import FloatModel
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.units import KINDS_OF_UNIT, Unit, piece_of, units_of


def graph_of(net: nn.Module, size: int = 32) -> fx.GraphModule:
    model = FloatModel(name="net", net=net.eval(), image_shape=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3)
    return folded_graph(model)


@pytest.mark.parametrize(
    ("name", "blocks", "layers"), [("resnet18", 10, 21), ("resnet50", 18, 54), ("mobilenet_v2", 20, 53)]
)
def test_numbers_of_units_equal_those_of_the_papers(name: str, blocks: int, layers: int) -> None:
    graph = graph_of(getattr(torchvision.models, name)())
    assert len(units_of(graph, "block")) == blocks
    assert len(units_of(graph, "layer")) == layers
    assert sum(len(unit.layers) for unit in units_of(graph, "block")) == layers


def test_units_of_resnet18_by_name() -> None:
    units = units_of(graph_of(torchvision.models.resnet18()), "block")
    assert units[0] == Unit("conv1", "images", "relu", ("conv1",))
    assert units[1] == Unit("layer1.0", "maxpool", "layer1_0_relu_1", ("layer1.0.conv1", "layer1.0.conv2"))
    assert units[3].layers == ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0")
    assert units[-1] == Unit("fc", "flatten", "fc", ("fc",))


def test_a_block_without_a_shortcut_is_one_unit_like_other_blocks() -> None:
    units = units_of(graph_of(torchvision.models.mobilenet_v2()), "block")
    assert [unit.name for unit in units[1:4]] == ["features.1", "features.2", "features.3"]
    assert len(units[2].layers) == 3


class Plain(nn.Module):
    """A chain with a convolution that is called twice, and one whose activation has 2 readers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shared, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.a(x).relu_(), 2)
        x = self.shared(x).relu()
        x = self.shared(x) * torch.sigmoid(x)
        return self.last(x.mean((2, 3)))


class Shuffled(nn.Module):
    """A block as in ShuffleNet: half of the channels pass 3 layers, the others go around them."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.unflatten(1, (4, 2)).transpose(0, 2).transpose(1, 2)  # every other channel
        return torch.cat([left, self.main(right).relu()], dim=1)


class Pyramid(nn.Module):
    """Blocks of which an early one is read again at the end, as in detectors with a feature pyramid and in U-Nets."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3), nn.ModuleList(Shuffled() for _ in range(depth))
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        early = late = self.stem(x).relu()
        for block in self.blocks:
            late = block(late)
        return self.last(torch.cat([early, late], dim=1)).mean((2, 3))


def test_a_tensor_that_is_read_again_later_does_not_make_one_unit_of_all_blocks_between() -> None:
    units = units_of(graph_of(Pyramid(depth=4)), "block")
    assert [unit.name for unit in units] == ["stem", *(f"blocks.{number}.main.0" for number in range(4)), "last"]
    assert [len(unit.layers) for unit in units] == [1, 3, 3, 3, 3, 1]


def test_a_piece_that_is_no_deeper_than_a_block_stays_whole() -> None:
    units = units_of(graph_of(Pyramid(depth=2)), "block")
    assert [len(unit.layers) for unit in units] == [1, 6, 1]


@pytest.mark.parametrize("name", ["densenet121", "googlenet"])
def test_units_are_as_deep_as_blocks(name: str) -> None:
    settings = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    graph = graph_of(getattr(torchvision.models, name)(weights=None, **settings))
    units = units_of(graph, "block")
    assert max(len(unit.layers) for unit in units) <= 6
    assert sum(len(unit.layers) for unit in units) == len(units_of(graph, "layer"))


def test_a_chain_is_cut_at_every_layer_and_shared_layers_belong_to_the_first() -> None:
    graph = graph_of(Plain())
    assert [(unit.entry, unit.exit) for unit in units_of(graph, "block")] == [
        ("images", "relu_"),
        ("max_pool2d", "relu"),
        ("mean", "last"),
    ]
    assert [unit.layers for unit in units_of(graph, "layer")] == [("a",), ("shared",), ("last",)]


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_pieces_compute_what_the_network_does(kind: str) -> None:
    graph = graph_of(torchvision.models.mobilenet_v3_small())
    nodes = {node.name: node for node in graph.graph.nodes}
    images = torch.randn(2, 3, 32, 32)
    seen = _Recorder(graph)
    with torch.no_grad():
        seen.run(images)
        for unit in units_of(graph, kind):
            piece = piece_of(graph, nodes[unit.entry], nodes[unit.exit])
            torch.testing.assert_close(piece(seen.values[unit.entry]), seen.values[unit.exit])


class _Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Tensor:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def test_reading_the_batch_size_at_the_start_merges_no_units() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(144, 5)

        def forward(self, x: Tensor) -> Tensor:
            count = x.shape[0]
            return self.c(self.b(self.a(x)).reshape(count, -1))

    graph = graph_of(Counted(), 8)
    assert [unit.layers for unit in units_of(graph, "block")] == [("a",), ("b",), ("c",)]
    assert graph(torch.zeros(7, 3, 8, 8)).shape == (7, 5)


def test_layers_inside_windows_are_in_one_unit_with_their_surroundings() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            count, channels, height, width = x.shape
            x = x.reshape(count, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 3, 5, 1)
            x = self.b(x.reshape(count * 4, -1, channels)).relu()
            return self.c(x.reshape(count, -1, channels).mean(1))

    graph = graph_of(Windows(), 8)
    for kind in KINDS_OF_UNIT:
        assert [unit.layers for unit in units_of(graph, kind)] == [("a",), ("b",), ("c",)]


def test_a_piece_shares_the_modules_of_its_graph() -> None:
    graph = graph_of(Plain())
    first, *_ = units_of(graph, "block")
    nodes = {node.name: node for node in graph.graph.nodes}
    assert piece_of(graph, nodes[first.entry], nodes[first.exit]).get_submodule("a") is graph.get_submodule("a")


def test_a_piece_with_another_input_is_refused() -> None:
    graph = graph_of(Plain())
    nodes = {node.name: node for node in graph.graph.nodes}
    with pytest.raises(ValueError, match="another way than shared_1"):
        piece_of(graph, nodes["shared_1"], nodes["last"])
