"""Networks as people write them: sizes, casts, wrappers and constants are resolved by tracing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel, UntraceableNetwork, hptq
from dghlib.quantizers.graph import folded_graph, left_in_float
from dghlib.quantizers.operations import is_batch_norm
from dghlib.running.copies import private_copy

SIZE = 16


class Written(nn.Module):
    """A convolution, a batch norm and a linear layer, called c, b and f, with a given forward."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        standard = {"c": nn.Conv2d(3, 8, 3), "b": nn.BatchNorm2d(8), "f": nn.Linear(8, 4)}
        for name, layer in (standard | layers).items():
            self.add_module(name, layer)
        self.written = forward
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def as_model(net: nn.Module) -> FloatModel:
    return FloatModel(name="net", net=net, image_shape=(3, SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)


def noise(count: int = 8) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def quantized(net: nn.Module, bits: int = 8) -> QuantizedModel:
    return hptq.quantize(as_model(net), noise(), hptq.Config(weight_bits=bits, activation_bits=bits))


def check_same(net: nn.Module) -> fx.GraphModule:
    """Check that the graph gives the outputs of the network, for other numbers of images than in tracing."""
    graph = folded_graph(as_model(net))
    with torch.no_grad():
        for count in (1, 2, 7):
            torch.testing.assert_close(graph(noise(count)), net(noise(count)), rtol=1e-4, atol=1e-5)
    return graph


def names_of(graph: fx.GraphModule) -> list[str]:
    return [node.name for node in graph.graph.nodes]


def features(net: Any, x: Tensor) -> Tensor:
    return torch.relu(net.b(net.c(x)))


# Sizes


def branch_on_sizes(net: Any, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if height % 7 or width % 7:
        x = F.pad(x, (0, -width % 7, 0, -height % 7))
    assert x.shape[-1] == x.size(3) == 21
    left, right = list(features(net, x).chunk(2, 1))
    return F.interpolate(torch.cat((left, right), 1), size=(height, width)).mean((2, 3))


def pooling_over_the_whole(net: Any, x: Tensor) -> Tensor:
    x = features(net, x)
    return net.f(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


def windows(net: Any, x: Tensor) -> Tensor:
    """Swin's way of cutting a map: the number of windows depends on the number of images."""
    x = features(net, x)
    count, channels, height, width = x.shape
    x = x.view(count, channels, height // 7, 7, width // 7, 7).permute(0, 2, 4, 3, 5, 1)
    x = x.reshape(-1, 49, channels)
    attention = (x @ x.transpose(1, 2)).softmax(-1)
    count = int(attention.shape[0] / (height * width / 49))
    x = (attention @ x).view(count, height // 7, width // 7, 7, 7, -1)
    return x.mean((1, 2, 3, 4))


def sums_over_images_in_a_row(net: Any, x: Tensor) -> Tensor:
    x = features(net, x).flatten(2).permute(2, 0, 1)
    return x.reshape(x.shape[0] * x.shape[1], -1).view(-1, x.shape[1], 8).mean(0)


def parts(net: Any, x: Tensor) -> Tensor:
    first, *rest = features(net, x).split([2, 3, 3], dim=1)
    rows = rest[0].unbind(2)
    return torch.stack([first.mean((1, 2, 3)), rows[0].mean((1, 2)), len(rows) * torch.max(rest[1], 1)[0].mean((1, 2))])


@pytest.mark.parametrize(
    "forward", [branch_on_sizes, pooling_over_the_whole, windows, sums_over_images_in_a_row, parts]
)
def test_sizes_are_resolved(forward: Callable) -> None:
    check_same(Written(forward))


def positions(net: Any, x: Tensor) -> Tensor:
    x = features(net, x)
    across = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape[0], 1, x.shape[-2], -1)
    return torch.cat([x, across], 1).mean((2, 3))


def starts_from_zeros(net: Any, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[0], 8)
    return net.f(total + features(net, x).mean((2, 3)))


def numbered(net: Any, x: Tensor) -> Tensor:
    return features(net, x).mean((2, 3)) * torch.arange(x.shape[0]).unsqueeze(1)


def test_tensors_created_in_each_pass_become_constants() -> None:
    check_same(Written(positions))
    check_same(Written(starts_from_zeros))
    with pytest.raises(UntraceableNetwork, match="that forward makes anew"):
        folded_graph(as_model(Written(numbered)))


def test_values_written_into_a_tensor_of_constants_are_refused() -> None:
    """Otherwise the graph would keep those of the images with which it was traced."""

    def of_one_image(net: Any, x: Tensor) -> Tensor:
        maps = features(net, x).mean((2, 3))
        first = maps.new_zeros(1, 8)
        first[0] = maps[0]
        return net.f(maps + first)

    def added(net: Any, x: Tensor) -> Tensor:
        maps = features(net, x).mean((2, 3))
        return net.f(torch.zeros_like(maps).add_(maps))

    for forward in (of_one_image, added):
        with pytest.raises(UntraceableNetwork, match="written into a tensor of constants"):
            folded_graph(as_model(Written(forward)))


def test_decisions_on_the_number_of_images_are_refused() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return features(net, x).mean((2, 3)) * (2 if len(x) == 1 else 1)

    with pytest.raises(UntraceableNetwork):
        folded_graph(as_model(Written(forward)))


def test_decisions_on_values_are_refused() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = features(net, x).mean((2, 3))
        return net.f(x) if x.max() > 0 else x

    with pytest.raises(UntraceableNetwork, match=r"`return net.f\(x\) if x.max\(\) > 0 else x`"):
        folded_graph(as_model(Written(forward)))


def test_networks_that_amplify_rounding_are_checked_in_double() -> None:
    """Large weights without a norm turn rounding errors into other outputs."""
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Conv2d(8, 8, 1, bias=False), nn.Hardtanh(-5, 5))]
    for layer in layers[::2]:
        layer.state_dict()["weight"].mul_(4)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *layers, nn.Flatten(), nn.Linear(8 * 14 * 14, 4)).eval()
    folded_graph(as_model(net))


# Other facts that are resolved


def test_casts_without_effect_are_removed() -> None:
    net = Written(
        lambda net, x: net.f(features(net, x.to("cpu").float().contiguous()).mean((2, 3)).type_as(x).detach())
    )
    assert list(quantized(net).activation_quantizers()) == ["images", "relu", "mean", "f"]


@pytest.mark.parametrize("name", ["keys", "values", "items", "pop", "update", "clear"])
def test_tensors_may_have_any_name(name: str) -> None:
    """A module stores quantizers under these names, beside its own attributes."""
    net = Written(lambda net, x: net.f((getattr(net, name)(features(net, x)) > 0).to(torch.float32).mean((2, 3))))
    net.add_module(name, nn.Conv2d(8, 8, 1))
    model = quantized(net)
    assert len(model.weight_quantizers()) == 3
    assert model(noise()).shape == (8, 4)


def test_a_layer_whose_weight_has_another_reader() -> None:
    net = Written(lambda net, x: net.f(features(net, x).mean((2, 3))) / net.f.weight.norm(dim=1) + net.f.bias)
    check_same(net)
    model = quantized(net)
    assert list(model.weight_quantizers()) == ["c", "f"]
    with torch.no_grad():
        torch.testing.assert_close(model(noise()), net(noise()), rtol=0.2, atol=0.05)


def test_readers_of_sizes_do_not_keep_a_batch_norm() -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            torch._assert(input.ndim == 4, "maps")
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.1, self.eps)

    graph = check_same(Written(lambda net, x: features(net, x).mean((2, 3)), b=Norm(8)))
    assert not any(is_batch_norm(module) for module in graph.modules())


# Ways to wrap a network


def test_an_assigned_forward_is_traced() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(8, 8, 3)
            self.forward = self.plain

        def plain(self, x: Tensor) -> Tensor:
            return self.c(x)

    net = Written(lambda net, x: net.f(net.block(features(net, x)).mean((2, 3))), block=Block())
    assert list(quantized(net).weight_quantizers()) == ["c", "block.c", "f"]


def test_layers_inside_wrappers_are_traced() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.DataParallel(nn.Sequential(nn.DataParallel(body), nn.Linear(8, 4))).eval()
    assert list(quantized(net).weight_quantizers()) == ["module.0.module.0", "module.1"]


def test_layers_inside_torchs_modules_are_traced() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = Written(lambda net, x: net.f(net.t(features(net, x).flatten(2).transpose(1, 2)).mean(1)), t=layer)
    check_same(net)
    model = quantized(net)
    assert len(model.weight_quantizers()) == 6  # 4 of them in the transformer
    assert not left_in_float(model.graph)


def test_attention_of_torch_is_traced_as_operations() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = features(net, x).flatten(2).transpose(1, 2)
        mixed, weights = net.t(x, x[:, :5], x[:, 3:8])
        return (
            mixed[:, :5].mean(1) + weights.mean((1, 2)).unsqueeze(1) + F.scaled_dot_product_attention(x, x, x).mean(1)
        )

    check_same(Written(forward, t=nn.MultiheadAttention(8, 2, batch_first=True)))


def test_compiled_networks_are_traced_as_the_original() -> None:
    net = Written(features, b=torch.compile(nn.BatchNorm2d(8)))  # type: ignore[arg-type]
    net.eval().compile()
    assert isinstance(private_copy(torch.compile(net)), Written)  # type: ignore[arg-type]
    assert list(quantized(torch.compile(net)).weight_quantizers()) == ["c"]  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_networks_without_python_code_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    for form, message in (
        (torch.export.export(net, (noise(),)).module(), "was exported by torch.export"),
        (torch.jit.script(net), "was scripted or traced by torch.jit"),
        (nn.Sequential(torch.jit.trace(net, noise())), "module '0' of the network was scripted"),
    ):
        with pytest.raises(ValueError, match=message):
            quantized(form)


# Weights that stay in float


def test_layers_that_cannot_be_quantized_are_refused_by_name() -> None:
    net = Written(lambda net, x: net.r(features(net, x).flatten(2))[0].mean(1), r=nn.GRU(196, 4, batch_first=True))
    with pytest.raises(ValueError, match="'r' is a GRU, whose weights cannot be quantized"):
        folded_graph(as_model(net))


def test_weights_outside_of_layers_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A scale of channels is not one of them."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = features(net, x)
        return (x + net.scale * (x - 1)).mean((2, 3)) @ (net.matrix * 2).T + net.f.bias

    net = Written(forward)
    net.matrix, net.scale = nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.rand(8, 1, 1))
    assert left_in_float(check_same(net)) == ["matrix"]
    assert "the weights of matrix stay in float" in caplog.text


# Scales and shifts


class Frozen(nn.Module):
    """A handwritten batch norm: of constants, of statistics, or in steps."""

    def __init__(self, norm: nn.BatchNorm2d, way: str):
        super().__init__()
        self.way, self.eps = way, norm.eps
        for name, value in norm.state_dict().items():
            self.register_buffer(name, value.clone())

    def forward(self, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            getattr(self, name).reshape(1, -1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
        )
        if self.way == "steps":
            return weight * ((x - mean) / torch.sqrt(variance + self.eps)) + bias
        scale = weight * (variance + self.eps).rsqrt()
        if self.way == "addcmul":
            return torch.addcmul(bias - mean * scale, x, scale)
        return x.mul(scale).add(bias - mean * scale)


@pytest.mark.parametrize("way", ["constants", "steps", "addcmul"])
def test_handwritten_batch_norms_are_folded(way: str) -> None:
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(8).eval()
    norm.state_dict()["running_var"].copy_(torch.rand(8) ** 6 + 1e-4)
    norm.state_dict()["running_mean"].normal_()
    own, usual = (Written(features, b=b) for b in (Frozen(norm, way), norm))
    graph = check_same(own)
    assert names_of(graph) == names_of(folded_graph(as_model(usual)))
    with torch.no_grad():
        difference = quantized(own)(noise()) - quantized(usual)(noise())
        assert (difference != 0).float().mean() < 0.01  # weights are equal up to rounding


def test_constant_scales_and_shifts_are_folded() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = (features(net, x) * 2).permute(0, 2, 3, 1)
        x = net.f(x).permute(0, 3, 1, 2) * net.gamma.view(4, 1, 1)
        return (3 - net.d(x)) / 6 + x

    net = Written(forward, d=nn.Conv2d(4, 4, 1, groups=2))
    net.gamma = nn.Parameter(torch.linspace(0.5, 2, 4))
    names = names_of(check_same(net))
    assert names == ["images", "c", "relu", "mul", "permute", "f", "permute_1", "d", "add", "output"]


def shared(net: Any, x: Tensor) -> Tensor:
    x = net.c(x)
    return x * 2 + x


def of_places(net: Any, x: Tensor) -> Tensor:
    return net.c(x) * torch.linspace(0, 1, 14)


def inverse(net: Any, x: Tensor) -> Tensor:
    return 2 / (net.c(x).sigmoid() + 1) + 1 / (net.c(x) - 100)


@pytest.mark.parametrize("forward", [shared, of_places, inverse])
def test_operations_that_do_not_scale_a_layer_stay(forward: Callable) -> None:
    check_same(Written(forward))


class Mixed(nn.Module):
    """Parallel convolutions of several kernel sizes, and a batch norm after all of them, as in MixNet."""

    def __init__(self, readers: int = 1) -> None:
        super().__init__()
        self.one, self.three, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(10)
        nn.init.normal_(self.norm.get_buffer("running_mean"))
        nn.init.uniform_(self.norm.get_buffer("running_var"), 0.2, 3)
        nn.init.normal_(self.norm.weight)
        self.readers = readers

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.one(x), self.three(x)], dim=1)
        return sum([joined] * (self.readers - 1), self.norm(joined).relu())


def test_a_batch_norm_after_concatenated_layers_folds_into_each() -> None:
    torch.manual_seed(0)
    graph = check_same(Mixed().eval())
    assert names_of(graph) == ["images", "one", "three", "cat", "relu", "output"]
    assert "moments" in next(node for node in graph.graph.nodes if node.name == "three").meta
    assert "norm" in names_of(check_same(Mixed(readers=2).eval()))
