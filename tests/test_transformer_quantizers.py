"""RepQ-ViT, PTQ4ViT and ERQ: uneven grids by hand, exact reparameterization, unusual transformers, files."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dghlib.export import OnnxNetwork, export_onnx
from dghlib.models import FloatModel
from dghlib.models.transformers import VisionTransformer
from dghlib.quantizers import QuantizedModel, erq, noise_report, ptq4vit, repq_vit
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.operations import SOFTMAXES, does
from dghlib.quantizers.percentiles import weight_grid
from dghlib.quantizers.placement import factors
from dghlib.quantizers.product_errors import recorded_products
from dghlib.quantizers.reparameterization import common_grid, layers_behind_norms, reparameterize
from dghlib.quantizers.uneven import LogQuantizer, TwinQuantizer

METHODS = {"repq_vit": repq_vit, "ptq4vit": ptq4vit, "erq": erq}


def noise(num_images: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def model_of(net: nn.Module, size: int = 8) -> FloatModel:
    shape = (3, size, size)
    return FloatModel(name="net", net=net.eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network with random weights, in which ranges of layer norms' channels differ by a factor of 100."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build()
        for module in net.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight)  # an untrained head
            if isinstance(module, nn.LayerNorm) and module.weight is not None:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.normal_(module.bias)
                with torch.no_grad():
                    module.weight.mul_(torch.logspace(-1, 1, module.weight.numel()))
        return net.eval()


def small(**changed: Any) -> nn.Module:
    settings = {"size": 8, "patch": 2, "width": 12, "depth": 2, "heads": 2, "hidden": 24, "num_classes": 5}
    return VisionTransformer(**{**settings, **changed})


def quantized(method: str, model: FloatModel, bits: int = 4, **settings: Any) -> QuantizedModel:
    few = {"candidates": 12} if method == "ptq4vit" else {}
    config = METHODS[method].Config(weight_bits=bits, activation_bits=bits, **few, **settings)
    return METHODS[method].quantize(model, noise(8, model.image_shape[1]), config)


# Grids


def test_a_logarithmic_grid_by_hand() -> None:
    """2 bits: 1, 1/sqrt(2), 1/2 and 0; boundaries are half a step away in the logarithm."""
    grid = LogQuantizer(torch.tensor(1.0), bits=2)
    values = torch.tensor([3.0, 0.9, 0.8, 0.6, 0.5, 0.43, 0.41, 0.0])
    root = math.sqrt(0.5)
    torch.testing.assert_close(grid(values), torch.tensor([1.0, 1.0, root, root, 0.5, 0.5, 0.0, 0.0]))
    assert grid.to_codes(values).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("signed", [False, True])
def test_a_twin_grid_has_two_ranges_of_half_the_codes(signed: bool) -> None:
    grid = TwinQuantizer(torch.tensor(0.25), torch.tensor(1.0), bits=3, signed=signed)
    points = torch.tensor(
        [-1.0, -0.75, -0.5, -0.25, 0.0, 1.0, 2.0, 3.0] if signed else [0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0]
    )
    assert torch.equal(grid(points), points)
    assert grid(torch.tensor([9.0, -9.0])).tolist() == [3.0, -1.0 if signed else 0.0]
    values = torch.linspace(-2, 4, 1001)
    assert torch.equal(grid(values).unique(), points)
    nearest = points[(values[:, None] - points).abs().argmin(1)]
    assert torch.equal((grid(values) - values).abs(), (nearest - values).abs())


@pytest.mark.parametrize(
    "grid",
    [LogQuantizer(torch.tensor(0.7), bits=4)]
    + [TwinQuantizer(torch.tensor(0.1), torch.tensor(0.8), bits=4, signed=signed) for signed in (False, True)],
)
def test_codes_of_uneven_grids_represent_the_output(grid: LogQuantizer | TwinQuantizer) -> None:
    values = torch.linspace(-0.5, 3, 997)
    codes = grid.to_codes(values)
    torch.testing.assert_close(grid.from_codes(codes), grid(values), rtol=1e-6, atol=0)
    assert len(codes.unique()) <= 16 >= len(grid(values).unique())
    assert torch.equal(grid(grid(values)), grid(values))


def test_steps_of_a_twin_grid_differ_by_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two, got"):
        TwinQuantizer(torch.tensor(0.1), torch.tensor(0.3), bits=4, signed=False)


# Reparameterization


@pytest.mark.parametrize("build", [small, lambda: small(class_token=False), lambda: timm_vit("swin")])
def test_reparameterization_changes_nothing_in_float(build: Callable[[], nn.Module]) -> None:
    net = built(build)
    size = 8 if isinstance(net, VisionTransformer) else 32
    graph = folded_graph(model_of(net, size))
    images = noise(4, size)
    expected = graph(images)
    layers, _ = layers_behind_norms(graph, images)
    assert len(layers) >= 4
    modules = {node.name: str(node.target) for node in graph.graph.nodes}
    draws = torch.Generator().manual_seed(1)
    changes = {}
    for norm, paths in layers.items():
        (channels,) = graph.get_submodule(modules[norm]).normalized_shape  # type: ignore[misc]
        changes[modules[norm]] = [
            paths,
            (torch.rand(channels, generator=draws) + 0.1).tolist(),
            torch.randn(channels, generator=draws).tolist(),
        ]
    reparameterize(graph, changes)
    torch.testing.assert_close(graph(images), expected, rtol=1e-3, atol=1e-4)


def test_channels_share_a_grid_and_dead_channels_become_zero() -> None:
    low, high = torch.tensor([-1.0, -10.0, 3.0, 5.0]), torch.tensor([1.0, 30.0, 4.0, 5.0])
    factors_, shifts, scale, zero_point = common_grid(low, high, bits=4)
    assert zero_point in range(16)
    for end, code in ((low, 0), (high, 15)):
        brought = end[:3] / factors_[:3] - shifts[:3]
        torch.testing.assert_close(brought, ((code - zero_point) * scale).expand(3), rtol=1e-6, atol=1e-6)
    assert (factors_[3], shifts[3]) == (1, 5)


def test_a_constant_channel_causes_no_division_by_zero() -> None:
    net = built(small)
    with torch.no_grad():
        net.get_parameter("blocks.0.norm1.weight")[3] = 0
    made = quantized("repq_vit", model_of(net), bits=8)
    images = noise(16, seed=2)
    error = (made(images) - net(images)).square().mean() / net(images).square().mean()
    assert error < 0.05


class PostNorm(nn.Module):
    """2 of torch's encoder layers, whose norms follow the sums; the mean of 16 patches is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, 2)
        layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_norms_after_sums_are_reported_by_name(caplog: pytest.LogCaptureFixture) -> None:
    made = quantized("repq_vit", model_of(built(PostNorm)))
    refused = made.about["not reparameterized"]
    assert len(refused) == 4
    assert "add" in refused["encoder_layers_0_norm1"]
    assert "the layer norm encoder_layers_0_norm1 keeps one range for all channels" in caplog.text
    assert made.about["preparation"] == {"reparameterize": {"norms": {}}}


# Transformers of several libraries


def timm_vit(kind: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    if kind == "swin":
        return timm.models.SwinTransformer(
            img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), num_classes=5
        )
    return timm.models.VisionTransformer(
        img_size=8, patch_size=2, embed_dim=12, depth=2, num_heads=2, num_classes=5, global_pool=kind
    )


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer as Theirs

    return Theirs(image_size=8, patch_size=2, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24, num_classes=5)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # with image sizes and numbers of weights
    "ours": (small, 8, 10),
    "no class token": (lambda: small(class_token=False), 8, 10),
    "stem with batch norms": (lambda: small(stem=(6,), patch=4), 8, 11),
    "5 x 5 patches": (lambda: small(size=10), 10, 10),
    "torchvision": (torchvision_vit, 8, 10),
    "torch, norms behind sums": (PostNorm, 8, 10),
    "timm": (lambda: timm_vit("token"), 8, 10),
    "timm, mean": (lambda: timm_vit("avg"), 8, 10),
    "timm, windows": (lambda: timm_vit("swin"), 32, 19),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_and_softmax_of_a_transformer_is_quantized(name: str, method: str) -> None:
    build, size, weights = NETWORKS[name]
    net = built(build)
    model = model_of(net, size)
    made = quantized(method, model, bits=8)
    assert len(made.weight_quantizers()) == weights
    graph = folded_graph(model)
    softmaxes = [node.name for node in graph.graph.nodes if does(graph, node, SOFTMAXES)]
    grids = made.activation_quantizers()
    uneven = TwinQuantizer if method == "ptq4vit" else LogQuantizer
    assert {type(grids[softmax]) for softmax in softmaxes} == {uneven}
    images = noise(16, size, seed=2)
    with torch.no_grad():
        expected, found = net(images), made(images)
    assert (found - expected).square().mean() < 0.1 * expected.var()


def test_tensors_that_are_not_factors_of_products_stay_float() -> None:
    """These are inputs of norms, sums with shortcuts, scores and logits; "every_tensor" quantizes them."""
    graph = folded_graph(model_of(built(small)))
    computing = [node.name for node in graph.graph.nodes if "shape" in node.meta and node.op.startswith("call")]
    named = factors(graph)
    assert {"images", "blocks_0_norm1", "softmax", "matmul_1", "blocks_0_perceptron_1", "norm"} <= set(named)
    left = {"cat", "add", "add_1", "add_2", "matmul", "blocks_0_attention_qkv", "blocks_0_perceptron_0", "head"}
    assert left <= set(computing) - set(named)
    query, key, value = (named.count(name) for name in ("mul", "transpose_1", "getitem_2"))
    assert query + key + value >= 2
    everything = quantized("repq_vit", model_of(built(small)), placement="every_tensor").activation_quantizers()
    assert {"add", "add_1", "matmul", "head"} <= everything.keys()


@pytest.mark.parametrize(("method", "bits"), [("repq_vit", 8), ("ptq4vit", 32)])
def test_the_image_has_eight_bits_or_is_float(method: str, bits: int) -> None:
    grids = quantized(method, model_of(built(small)), bits=3).activation_quantizers()
    assert (grids["images"].bits if "images" in grids else 32) == bits


# Files


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [3, 8])
def test_a_saved_transformer_gives_the_same_outputs(method: str, bits: int, tmp_path: Path) -> None:
    model = model_of(built(small))
    made = quantized(method, model, bits)
    made.save(tmp_path / "file.safetensors")
    again = QuantizedModel.load(tmp_path / "file.safetensors", model)
    assert again.about == made.about
    images = noise(8, seed=3)
    assert torch.equal(again(images), made(images))
    kinds = ("tensor",) if method == "erq" else ("tensor", "weight")  # ERQ moves weights before it rounds them
    ratios = [each.own for each in noise_report(model, again, images) if each.kind in kinds]
    assert min(ratios) > (1 if bits == 3 else 15)


@pytest.mark.parametrize("placement", ["factors", "every_tensor"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["ours", "timm, windows"])
def test_onnxruntime_equals_the_simulation(method: str, name: str, placement: str, tmp_path: Path) -> None:
    build, size, _ = NETWORKS[name]
    model = model_of(built(build), size)
    made = quantized(method, model, bits=8, placement=placement)
    export_onnx(tmp_path / "net.onnx", model, made)
    images = noise(16, size, seed=4)
    with torch.no_grad():
        expected = made(images)
    found = OnnxNetwork(tmp_path / "net.onnx", threads=1)(images)
    assert isinstance(found, Tensor)
    # A value at the boundary of 2 codes can be rounded either way.
    assert (found - expected).abs().median() < 1e-3 * expected.std()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9


# PTQ4ViT's score


def test_errors_are_weighted_by_the_gradient_of_the_loss() -> None:
    net = built(small)
    graph = folded_graph(model_of(net))
    products = recorded_products(graph, noise(6), 4, rows=10_000, matrices=10_000, seed=0)
    head = products["head"]
    logits = net(noise(6))
    logits = logits[torch.cdist(head.made, logits).argmin(1)]  # rows are drawn in another order
    torch.testing.assert_close(head.made, logits, rtol=1e-4, atol=1e-5)
    # d(-log p_c) / d logits = p - onehot(c)
    residual = logits.softmax(1) - head.gradient
    torch.testing.assert_close(residual.sum(1), torch.ones(6), rtol=1e-4, atol=1e-4)
    assert ((residual > 0.999) | (residual.abs() < 1e-3)).all()
    assert head.layer is not None
    assert head.errors(head.factors[0], head.layer.weight).max() < 1e-9
    moved = head.layer.weight + 1
    expected = (head.factors[0].sum(1, keepdim=True) * head.gradient).square()
    torch.testing.assert_close(head.errors(head.factors[0], moved), expected, rtol=1e-3, atol=1e-4)


def test_a_network_without_logits_is_refused_by_ptq4vit() -> None:
    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.relu(self.conv(x)))

    with pytest.raises(ValueError, match=r"returns \(2, 4, 6, 6\): use repq_vit"):
        ptq4vit.quantize(model_of(built(Map)), noise(2), ptq4vit.Config())


def test_the_float_network_is_unchanged() -> None:
    net = built(small)
    before = copy.deepcopy(net.state_dict())
    for method in METHODS:
        quantized(method, model_of(net))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# ERQ's ridges


def test_ridge_regression_reduces_errors_of_tensors_and_weights() -> None:
    """Compared with the nearest rounding of the same layer, on images that were not fitted."""
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randn(64, 20, 4, generator=draws) @ torch.randn(4, 16, generator=draws)  # the inputs are correlated
    rounded = tokens.round()
    layer = nn.Linear(16, 8)
    nn.init.normal_(layer.weight, generator=draws)
    with torch.no_grad():
        target = layer(tokens)
        grid, weight, bias = erq.quantized_weight(layer, rounded[:32], target[:32], 3)
        assert torch.equal(grid(weight.float()), weight.float())
        nearest = weight_grid(layer, 3)(layer.weight)
        plain = (F.linear(rounded[32:], nearest, layer.bias) - target[32:]).square().mean()
        made = (F.linear(rounded[32:], weight.float(), bias.float()) - target[32:]).square().mean()
    assert made < 0.5 * plain


def test_a_correction_that_other_images_do_not_support_is_not_made() -> None:
    draws = torch.Generator().manual_seed(0)
    x, layer = torch.randn(2, 30, 16, generator=draws), nn.Linear(16, 8)
    errors = torch.randn(2, 30, 8, generator=draws)  # these are independent of the inputs
    errors -= errors.mean((0, 1))
    weight, bias = layer.weight.double().detach(), layer.bias.double().detach()
    moved, _, ridge = erq._moved(weight, bias, x.double(), (layer(x) + errors).double().detach())
    assert ridge == 0
    assert torch.equal(moved, weight)


def test_erq_needs_two_images() -> None:
    with pytest.raises(ValueError, match="at least 2 images, to fit and to choose, got 1"):
        erq.quantize(model_of(built(small)), noise(1), erq.Config())


# Whole networks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "deit_base_patch16_224", "swin_base_patch4_window7_224"])
def test_transformers_of_full_size_are_quantized_completely(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_of(timm.create_model(name, pretrained=False), 224)
    made = repq_vit.quantize(model, noise(2, 224), repq_vit.Config(weight_bits=8, activation_bits=8, batch_size=1))
    linear = sum(isinstance(module, nn.Linear) for module in model.net.modules())
    assert len(made.weight_quantizers()) == linear + 1  # and the convolution of patches
    images = noise(2, 224, seed=1)
    with torch.no_grad():
        error = (made(images) - model.net(images)).square().mean() / model.net(images).var()
    assert error < 0.1
