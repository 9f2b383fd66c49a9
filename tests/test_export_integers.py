"""What onnxruntime makes of a file by default: integer kernels, and the values of the simulation."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dghlib import models
from dghlib.export import export_onnx
from dghlib.models import FloatModel
from dghlib.quantizers import brecq, hptq
from dghlib.quantizers.grid import UniformQuantizer


def as_model(net: nn.Module, size: int = 16) -> FloatModel:
    shape = (3, size, size)
    return FloatModel(name="net", net=net.eval(), image_shape=shape, mean=(0.45,) * 3, std=(0.23,) * 3)


def noise(count: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)


def by_default(path: Path, images: Tensor) -> tuple[np.ndarray, Counter[str]]:
    """Run a file with default settings; return the outputs, and how many nodes of each type the runtime made.

    The option is that of the README for processors on which products of bytes overflow; on others it has no
    effect.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.optimized_model_filepath = str(path.with_suffix(".fused.onnx"))
    options.log_severity_level = 3  # no warning that the fused file is for this processor
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    return found, Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def network(name: str) -> FloatModel:
    if name.startswith("shapes"):
        return models.load(name)
    torch.manual_seed(0)
    return as_model(torchvision.models.get_model(name), 32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("name", "sums"),
    [
        ("shapes_residual", 8),
        ("shapes_bottleneck", 11),
        ("shapes_inverted", 4),
        ("resnet18", 8),
        ("mobilenet_v2", 10),
    ],
)
def test_all_layers_run_in_integers_and_equal_the_simulation(name: str, sums: int, bits: int, tmp_path: Path) -> None:
    """Also at 4 bits: 2 weights are stored in a byte, and unpacked once."""
    model = network(name)
    images = noise(4, model.image_shape[1])
    quantized = hptq.quantize(model, images, hptq.Config(weight_bits=bits, activation_bits=bits))
    export_onnx(tmp_path / "net.onnx", model, quantized)
    found, nodes = by_default(tmp_path / "net.onnx", images)
    with torch.no_grad():
        assert np.array_equal(found, quantized(images).numpy())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.net.modules())
    assert {kind: nodes[kind] for kind in ("QLinearConv", "QLinearAdd", "QGemm")} == {
        "QLinearConv": convolutions,
        "QLinearAdd": sums,
        "QGemm": 1,
    }
    assert nodes["QLinearAveragePool"] + nodes["QLinearGlobalAveragePool"] == 1
    assert (nodes["QuantizeLinear"], nodes["DequantizeLinear"]) == (1, 1)  # of the images and of the logits
    assert not nodes.keys() & {"Conv", "Gemm", "Add", "Relu"}


def test_free_steps_change_few_codes_by_one_step(tmp_path: Path) -> None:
    """If steps are not powers of 2, float sums are rounded, and a tie may be rounded to the other side."""
    model, images = network("shapes_inverted"), noise(8, 32)
    config = brecq.Config(weight_bits=8, activation_bits=8, placement="every_tensor", iterations=1, step_iterations=1)
    quantized = brecq.quantize(model, images, config)
    export_onnx(tmp_path / "net.onnx", model, quantized)
    found, nodes = by_default(tmp_path / "net.onnx", images)
    *_, logits = quantized.activation_quantizers().values()
    with torch.no_grad():
        steps = np.abs(found - quantized(images).numpy()) / logits.scale.item()
    assert nodes["QLinearConv"] == 25
    assert (steps > 0.5).mean() < 0.15  # 0.10 on some processors
    assert steps.max() < 1.5


def test_unsigned_weights_give_the_same_outputs(tiny_model: FloatModel, tmp_path: Path) -> None:
    """They are also right on processors where products of signed weights overflow."""
    for bits in (8, 4):
        quantized = hptq.quantize(tiny_model, noise(8, 8), hptq.Config(weight_bits=bits))
        file = export_onnx(tmp_path / "net.onnx", tiny_model, quantized, signed_weights=False)
        kinds = {tensor.data_type for tensor in file.graph.initializer if tensor.name.endswith("weight.codes")}
        assert kinds == {onnx.TensorProto.UINT8 if bits == 8 else onnx.TensorProto.UINT4}
        found, nodes = by_default(tmp_path / "net.onnx", noise(8, 8))
        with torch.no_grad():
            assert np.array_equal(found, quantized(noise(8, 8)).numpy())
        assert nodes["Conv"] == 0


class Ending(nn.Module):
    """A convolution, a ReLU, and an operation on its maps."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 8, 3, padding=1), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(self.conv(x)))


@pytest.mark.parametrize("size", [16, 15])
@pytest.mark.parametrize(
    "end",
    [
        lambda x: F.max_pool2d(F.pad(x - 3, (1, 1, 1, 1)), 3, 2),  # here zeros of the padding are largest
        lambda x: F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 1, 2),
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
        lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
        lambda x: F.adaptive_avg_pool2d(x, (3, 5)),  # windows of 36 and more that overlap
        lambda x: F.adaptive_avg_pool2d(x[:, :, :7, :7], 1),
        lambda x: x[:, :, :7, :7].mean((2, 3)),
    ],
)
def test_padding_and_pooling_equal_those_of_torch(end: Any, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images, path = as_model(Ending(end), size), noise(4, size), tmp_path / "net.onnx"
    export_onnx(path, model)
    with torch.no_grad():
        np.testing.assert_allclose(by_default(path, images)[0], model.net(images).numpy(), rtol=1e-5, atol=2e-6)
        quantized = hptq.quantize(model, images, hptq.Config())
        export_onnx(path, model, quantized)
        assert np.array_equal(by_default(path, images)[0], quantized(images).numpy())


class Between(nn.Module):
    """An operation between 2 convolutions."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.first, self.what, self.second = nn.Conv2d(3, 8, 3), what, nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.what(self.first(x)))


@pytest.mark.parametrize(
    ("clip", "clips"),
    [(nn.ReLU(), 0), (nn.ReLU6(), 1), (nn.Hardtanh(-0.5, 0.25), 1), (lambda x: F.hardtanh(x, -1.0, 6.0), 1)],
)
def test_clipping_activation_functions_become_clips_of_codes(clip: Any, clips: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images, path = as_model(Between(clip)), 4 * noise(4), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    export_onnx(path, model, quantized)
    found, nodes = by_default(path, images)
    with torch.no_grad():
        assert np.array_equal(found, quantized(images).numpy())
    assert (nodes["QLinearConv"], nodes["Clip"]) == (2, clips)


class Joined(Between):
    """An operation on the outputs of 2 parallel convolutions, which have grids, and a third convolution."""

    def __init__(self, what: Any) -> None:
        super().__init__(what)
        self.other, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.what(torch.cat((self.first(x), 3 * self.other(x)), 1)))


FUNCTIONS = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.25)),
    *(nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(), nn.Sigmoid(), nn.GELU(), nn.Mish(), nn.ELU(), nn.Tanh()),
    *(nn.LeakyReLU(0.1), nn.PReLU()),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(("place", "convolutions"), [(Between, 2), (Joined, 3)])
def test_convolutions_around_any_function_run_in_integers(
    place: Any, convolutions: int, function: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, images, path = as_model(place(function)), 4 * noise(8), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    export_onnx(path, model, quantized)
    found, nodes = by_default(path, images)
    with torch.no_grad():
        assert np.array_equal(found, quantized(images).numpy())
    assert (nodes["QLinearConv"], nodes["Conv"]) == (convolutions, 0)


class Summed(nn.Module):
    """Branches added by Python's `sum`, which starts with 0, and a product with 1."""

    def __init__(self) -> None:
        super().__init__()
        self.branches, self.end = (
            nn.ModuleList(nn.Conv2d(3, 8, k, padding=k // 2) for k in (1, 3, 5)),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.end(1.0 * (sum(branch(x) for branch in self.branches) - 0).relu())


def test_sums_that_start_with_zero_equal_the_simulation(tmp_path: Path) -> None:
    """The runtime removes the 0, and would then merge the grids before and after it."""
    torch.manual_seed(0)
    model, images, path = as_model(Summed()), noise(8), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    assert len(quantized.activation_quantizers()) == 7  # images, three branches, two sums, the end
    export_onnx(path, model, quantized)
    with torch.no_grad():
        assert np.array_equal(by_default(path, images)[0], quantized(images).numpy())


class Norms(nn.Module):
    """Batch norms that do not fold: of the images, and of the output of a ReLU that has another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(8)
        self.conv, self.end = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        for norm in (self.first, self.second):
            nn.init.normal_(norm.get_buffer("running_mean"))
            nn.init.uniform_(norm.get_buffer("running_var"), 0.2, 3)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.first(x)).relu()
        return self.end(x + self.second(x))


def test_batch_norms_that_do_not_fold_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images, path = as_model(Norms()), noise(16), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    export_onnx(path, model, quantized)
    with torch.no_grad():
        assert np.array_equal(by_default(path, images)[0], quantized(images).numpy())
    export_onnx(path, model)
    with torch.no_grad():
        np.testing.assert_allclose(by_default(path, images)[0], model.net(images).numpy(), rtol=1e-5, atol=1e-5)


class Scaled(nn.Module):
    """A shortcut around a branch with tiny values, like LayerScale at its start."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.branch, self.scale = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.branch(x) * self.scale


@pytest.mark.parametrize(("scale", "sums"), [(1e-2, 1), (1e-6, 0)])
def test_sums_of_very_different_steps_equal_the_simulation(scale: float, sums: int, tmp_path: Path) -> None:
    """In float, onnxruntime's sum of codes has too few bits to decide ties."""
    torch.manual_seed(0)
    model, images, path = as_model(Scaled(scale)), noise(16), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    export_onnx(path, model, quantized)
    found, nodes = by_default(path, images)
    with torch.no_grad():
        assert np.array_equal(found, quantized(images).numpy())
    assert nodes["QLinearAdd"] == sums


class Divided(nn.Module):
    """Linear attention divides by a sum that is 0 at some places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.end = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.first(x).relu() / (self.second(x).relu() + 1e-15))


def test_divisors_are_not_rounded_to_zero(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images, path = as_model(Divided()), noise(16), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    assert "add" not in quantized.activation_quantizers()
    export_onnx(path, model, quantized)
    with torch.no_grad():
        assert quantized(images).isfinite().all()
        assert np.array_equal(by_default(path, images)[0], quantized(images).numpy())


class Attending(nn.Module):
    """A softmax whose largest values the grid clips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x).flatten(2).transpose(1, 2) @ self.second(x).flatten(2)).softmax(-1)


@pytest.mark.parametrize("power", [8, 10, 13])
def test_a_softmax_beyond_its_grid_is_clipped(power: int, tmp_path: Path) -> None:
    """The integer softmax of onnxruntime would wrap around to 0."""
    torch.manual_seed(0)
    model, images, path = as_model(Attending(), 8), noise(8, 8), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    step = torch.tensor(2.0**-power)
    grid = UniformQuantizer(step, torch.zeros_like(step), bits=8, signed=False)
    quantized.set_activation_quantizers({"softmax": grid})
    export_onnx(path, model, quantized)
    found, _ = by_default(path, images)
    with torch.no_grad():
        expected = quantized(images).numpy()
    assert expected.max() == 255 * step or power == 8
    assert np.abs(found - expected).max() <= step
    assert (found != expected).mean() < 1e-3
