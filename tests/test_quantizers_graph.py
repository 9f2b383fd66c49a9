"""The folded graph equals the network, however it is written; refusals name the place and the remedy."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from dghlib.models import FloatModel
from dghlib.quantizers import UntraceableNetwork
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.operations import is_batch_norm

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, FrozenBatchNorm2d)


def with_random_statistics(net: nn.Module) -> nn.Module:
    """Give every batch norm of a network statistics like those of a trained layer."""
    rng = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, BATCH_NORMS):
            state = module.state_dict()
            state["running_mean"].normal_(0, 0.2, generator=rng)
            state["running_var"].uniform_(0.5, 1.5, generator=rng)
            if "weight" in state:
                state["weight"].normal_(generator=rng)
                state["bias"].normal_(0, 0.2, generator=rng)
    return net.eval()


def as_model(net: nn.Module, size: int = 8) -> FloatModel:
    shape = (3, size, size)
    return FloatModel(name="net", net=net, image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)


def check_equal(net: nn.Module, size: int = 8) -> fx.GraphModule:
    """Check that the folded graph gives the outputs of `net`, on images that folding has not used."""
    graph = folded_graph(as_model(with_random_statistics(net), size))
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(graph(images), net(images.clone()), rtol=1e-5, atol=1e-5)
    return graph


def batch_norms(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if is_batch_norm(module)]


class Written(nn.Module):
    """A network with a given forward, whose layers are called a, b, bn, relu and linear."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module):
        super().__init__()
        standard = {
            "a": nn.Conv2d(3, 4, 3, padding=1),
            "b": nn.Conv2d(4, 4, 3, padding=1),
            "bn": nn.BatchNorm2d(4),
            "relu": nn.ReLU(),
            "linear": nn.Linear(4, 5),
        }
        for name, layer in (standard | layers).items():
            self.add_module(name, layer)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


@pytest.mark.parametrize(
    ("name", "size", "left"),
    [
        ("resnet18", 32, 0),
        ("mobilenet_v2", 32, 0),
        ("densenet121", 32, 62),
        ("efficientnet_b0", 32, 0),
        ("mobilenet_v3_small", 32, 0),
        ("googlenet", 32, 0),
        ("shufflenet_v2_x0_5", 32, 0),
        ("regnet_y_400mf", 32, 0),
    ],
)
def test_torchvision_networks_fold(name: str, size: int, left: int) -> None:
    """GoogLeNet's auxiliary heads are not reached; half of DenseNet's batch norms follow no layer to fold into."""
    options = {"init_weights": False} if name == "googlenet" else {}
    net = getattr(torchvision.models, name)(weights=None, **options)
    assert len(batch_norms(check_equal(net, size))) == left


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, bias=False),
        nn.Conv2d(3, 6, 3, groups=3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(3, 6, 3, stride=2),
        nn.ConvTranspose2d(3, 6, 3, groups=3, bias=False),
    ],
)
@pytest.mark.parametrize(
    "batch_norm",
    [nn.BatchNorm2d(6, eps=0.1), nn.BatchNorm2d(6, affine=False), FrozenBatchNorm2d(6, eps=0.01)],
)
def test_layers_fold(layer: nn.Module, batch_norm: nn.Module) -> None:
    net = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(batch_norm), nn.ReLU(inplace=True))
    assert not batch_norms(check_equal(net))


def test_linear_layers_fold() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Dropout(), nn.BatchNorm1d(5))
    assert not batch_norms(check_equal(net))


def test_folding_is_exact_for_extreme_statistics() -> None:
    """In float32, 1e4 - 1e4 and slopes of 1e-6 would lose digits."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-12)).eval()
    state = net.state_dict()
    state["0.bias"] += 1000
    state["1.running_mean"] += 1000
    state["1.running_var"] *= 1e-4
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(images.double())
        torch.testing.assert_close(folded_graph(as_model(net))(images).double(), exact, rtol=1e-4, atol=1e-4)


def two_readers(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.bn(x) + x


def shared_convolution(net: Any, x: Tensor) -> Tensor:
    x = net.bn(net.b(net.a(x)))
    return net.bn(net.b(x))


def shared_convolution_read_plainly_once(net: Any, x: Tensor) -> Tensor:
    return net.b(net.bn(net.b(net.a(x))))


def shared_batch_norm(net: Any, x: Tensor) -> Tensor:
    return net.bn(net.b(net.relu(net.bn(net.a(x)))))


def batch_norm_first(net: Any, x: Tensor) -> Tensor:
    return net.a(net.first(x))


@pytest.mark.parametrize(
    ("forward", "left"),
    [
        (two_readers, 1),
        (shared_convolution, 0),
        (shared_convolution_read_plainly_once, 1),
        (shared_batch_norm, 0),
        (batch_norm_first, 1),
    ],
)
def test_only_layers_with_a_single_reader_are_folded(forward: Callable, left: int) -> None:
    net = Written(forward, first=nn.BatchNorm2d(3))
    assert len(batch_norms(check_equal(net))) == left


def test_two_consecutive_batch_norms_are_folded() -> None:
    assert not batch_norms(check_equal(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))))


def test_tied_weights_do_not_fold_into_each_other() -> None:
    net: Any = Written(lambda net, x: net.c(net.bn(net.b(net.a(x)))), c=nn.Conv2d(4, 4, 3, padding=1))
    net.c.weight = net.b.weight
    check_equal(net)


# Ways to write a network


def overwritten_by_a_function(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    y = F.relu(x, inplace=True)
    return net.b(y) + x  # x now has the values of y


def overwritten_by_a_method(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    x.add_(1).mul_(2)
    return net.b(torch.relu_(x))


def overwritten_by_a_module(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    net.in_place(x)
    return net.b(x) + x


def as_functions(net: Any, x: Tensor) -> Tensor:
    x = F.conv2d(x, net.a.weight, net.a.bias, padding=1)
    x = F.batch_norm(x, net.bn.running_mean, net.bn.running_var, net.bn.weight, net.bn.bias, eps=0.01)
    return F.linear(F.dropout(x, 0.5, net.training).relu().mean((2, 3)), weight=net.linear.weight)


def standardized_weight(net: Any, x: Tensor) -> Tensor:
    weight = net.a.weight - net.a.weight.mean((1, 2, 3), keepdim=True)
    return net.bn(F.conv2d(x, weight * 2, None, 1, 1))


def views(net: Any, x: Tensor) -> Tensor:
    x = net.bn(net.a(x))
    return x.view(x.size(0), -1)


def constants(net: Any, x: Tensor) -> Tensor:
    x = (x - net.mean.view(1, 3, 1, 1)) / net.mean[None, :, None, None]
    return net.bn(net.a(x)) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)


def writes_to_its_images(net: Any, x: Tensor) -> Tensor:
    return net.bn(net.a(x.mul_(2).sub_(1)))


def batch_norm_of_vectors(net: Any, x: Tensor) -> Tensor:
    x = net.linear(net.bn(net.a(x)).mean((2, 3)))
    return F.batch_norm(x, torch.arange(5.0), torch.arange(1.0, 6.0))


def transposed_by_a_function(net: Any, x: Tensor) -> Tensor:
    x = F.conv_transpose2d(x, net.up, None, 2)
    return F.batch_norm(x, net.bn.running_mean, net.bn.running_var, net.bn.weight)


def volumes(net: Any, x: Tensor) -> Tensor:
    return F.conv3d(net.bn3(net.conv3(x.unsqueeze(1))), net.conv3.weight.transpose(0, 1)).mean((2, 3, 4))


@pytest.mark.parametrize(
    "forward",
    [
        constants,
        writes_to_its_images,
        batch_norm_of_vectors,
        transposed_by_a_function,
        volumes,
        overwritten_by_a_function,
        overwritten_by_a_method,
        overwritten_by_a_module,
        as_functions,
        standardized_weight,
        views,
    ],
)
def test_ways_to_write_a_network_are_traced(forward: Callable) -> None:
    net = Written(forward, in_place=nn.ReLU(inplace=True), conv3=nn.Conv3d(1, 4, 3, padding=1), bn3=nn.BatchNorm3d(4))
    net.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))
    net.up = nn.Parameter(torch.randn(3, 4, 2, 2))
    graph = check_equal(net)
    assert not batch_norms(graph)
    for node in graph.graph.nodes:
        assert not str(node.target).endswith("_")
        assert node.target not in (F.conv2d, F.conv3d, F.conv_transpose2d, F.linear, F.batch_norm, F.dropout)


def test_subclasses_of_torchs_layers_are_folded() -> None:
    class MyConv(nn.Conv2d):
        pass

    class Doubling(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class MyBatchNorm(nn.BatchNorm2d):
        pass

    assert not batch_norms(check_equal(nn.Sequential(MyConv(3, 4, 3), MyBatchNorm(4))))
    assert not batch_norms(check_equal(nn.Sequential(Doubling(3, 4, 3), MyBatchNorm(4))))


def test_optional_inputs_get_their_default() -> None:
    class WithMask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            x = self.conv(x)
            return x if mask is None else x * mask

    check_equal(WithMask())


def test_reparametrized_and_half_precision_weights_are_folded() -> None:
    check_equal(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    half = copy.deepcopy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).half().eval()
    assert next(folded_graph(as_model(half)).parameters()).dtype == torch.float32
    assert next(half.parameters()).dtype == torch.float16


def test_weights_computed_by_hooks_are_folded() -> None:
    """The old spectral norm divides the weight before each pass; a loaded network has had no pass yet."""
    trained, loaded = (nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU()) for _ in range(2))
    for _ in range(5):
        trained(torch.randn(2, 3, 8, 8))  # its power iteration
    loaded.load_state_dict(trained.state_dict())
    check_equal(loaded)


def test_hooks_that_change_outputs_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    net.get_submodule("0").register_forward_hook(lambda module, inputs, output: output * 0.1)
    with pytest.raises(UntraceableNetwork, match="a hook"):
        folded_graph(as_model(net))


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential fails on images of the shape \(3, 8, 8\)"):
        folded_graph(as_model(nn.Sequential(nn.Flatten(), nn.Linear(10, 5)).eval()))


def test_blocks_are_found_by_path() -> None:
    """Reconstruction needs this: the module stack of a node names the blocks around it."""
    graph = folded_graph(as_model(torchvision.models.resnet18().eval(), 32))
    (add,) = (node for node in graph.graph.nodes if node.name == "add")
    assert list(add.meta["nn_module_stack"]) == ["layer1", "layer1.0"]
    assert add.meta["shape"][1:] == (64, 8, 8)


# The network is unchanged


def test_the_network_is_unchanged() -> None:
    net: Any = with_random_statistics(Written(overwritten_by_a_module, in_place=nn.ReLU(inplace=True)))
    seen: list[str] = []
    handle = net.a.register_forward_hook(lambda *_: seen.append("hook"))
    net.a.weight.grad = torch.ones_like(net.a.weight)
    net.train()
    net.b.eval()
    before = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    graph = folded_graph(as_model(net))

    assert seen == ["hook"]  # one pass, since a hook may compute a weight
    assert not any(module.training for module in graph.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(net.a.weight.grad, torch.ones_like(net.a.weight))
    assert net.training
    assert net.in_place.inplace
    assert not net.b.training
    assert net.a.weight.requires_grad
    assert handle.id in net.a._forward_hooks
    assert torch.equal(random_state, torch.get_rng_state())


# Refusals


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.sum() > 0:
            x = x + 1
        return x


def test_untraceable_networks_are_refused_with_the_line() -> None:
    net = nn.Sequential(nn.Identity(), nn.ModuleDict({"head": Branching()})["head"])
    with pytest.raises(UntraceableNetwork) as raised:
        folded_graph(as_model(net))
    for part in ("module '1' (Branching)", "test_quantizers_graph.py", "if x.sum() > 0:", "FloatModel(net="):
        assert part in str(raised.value)


def test_networks_with_state_are_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls = nn.Conv2d(3, 4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.conv(x) * self.calls

    with pytest.raises(UntraceableNetwork, match="changes from call to call"):
        folded_graph(as_model(Counting().eval()))


def test_networks_of_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ValueError, match=r"Two\.forward takes 2 inputs \(x, y\)"):
        folded_graph(as_model(Two()))


def test_batch_norms_without_statistics_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="batch norm '1' keeps no running statistics"):
        folded_graph(as_model(net))


@pytest.mark.parametrize("tensor", ["0.weight", "1.running_var"])
def test_tensors_that_are_not_finite_are_named(tensor: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net.state_dict()[tensor].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=tensor):
        folded_graph(as_model(net))


def test_moments_of_a_channel_follow_its_scale_and_shift() -> None:
    class Scaled(nn.Module):
        factor: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.register_buffer("factor", torch.tensor([2.0, -3.0, 0.5, -0.1]).view(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) * self.factor + 0.5

    net = Scaled()
    graph = check_equal(net)
    (known,) = [node.meta["moments"] for node in graph.graph.nodes if "moments" in node.meta]
    bn, factor = net.bn, net.factor.flatten()
    assert bn.running_var is not None
    kept = (bn.running_var / (bn.running_var + bn.eps)).sqrt()
    torch.testing.assert_close(known[0], bn.bias.detach() * factor + 0.5)
    torch.testing.assert_close(known[1], (bn.weight.detach() * factor).abs() * kept)
