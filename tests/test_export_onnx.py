"""ONNX files compute what the network does, bit for bit without optimizations, and store real integers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dghlib import datasets, models
from dghlib.export import OnnxNetwork, UnsupportedOperation, export_onnx, open_session
from dghlib.images import normalise
from dghlib.models import FloatModel, detectors
from dghlib.quantizers import QuantizedModel, genie_m, hptq
from dghlib.quantizers.layers import QuantizedLayer

KINDS = onnx.TensorProto


def as_model(net: nn.Module, size: int = 8) -> FloatModel:
    shape = (3, size, size)
    return FloatModel(name="net", net=net.eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)


def noise(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def outputs(net: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return net(images).numpy()


def by_runtime(path: Path, images: Tensor, optimized: bool = False) -> np.ndarray:
    (found,) = open_session(path, optimized=optimized).run(None, {"images": images.numpy()})
    return found


def constants_of(file: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in file.graph.initializer}


# Quantized networks


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 16])
def test_power_of_two_grids_are_equal_to_the_last_bit(bits: int, tiny_model: FloatModel, tmp_path: Path) -> None:
    """Products of codes are integers, whose sums are exact in any order, fused or not."""
    config = hptq.Config(weight_bits=min(bits, 8), activation_bits=bits)
    quantized = hptq.quantize(tiny_model, noise(32), config)
    export_onnx(tmp_path / "net.onnx", tiny_model, quantized)
    unseen = noise(50, seed=1)
    expected = outputs(quantized, unseen)
    if bits < 16:
        for optimized in (False, True):
            assert np.array_equal(by_runtime(tmp_path / "net.onnx", unseen, optimized), expected), optimized
    else:
        np.testing.assert_allclose(by_runtime(tmp_path / "net.onnx", unseen), expected, rtol=1e-3, atol=1e-4)


def test_learned_grids_with_zero_points_are_nearly_equal(tiny_model: FloatModel, tmp_path: Path) -> None:
    config = genie_m.Config(iterations=5, weight_bits=3, placement="every_tensor", activation_search="two_sided")
    quantized = genie_m.quantize(tiny_model, noise(32), config)
    assert any(grid.zero_point.any() for grid in quantized.activation_quantizers().values())
    assert any(grid.zero_point.any() for grid in quantized.weight_quantizers().values())
    export_onnx(tmp_path / "net.onnx", tiny_model, quantized)
    unseen, step = noise(50, seed=1), quantized.activation_quantizers()["linear"].scale.item()
    for optimized in (False, True):
        steps = np.abs(by_runtime(tmp_path / "net.onnx", unseen, optimized) - outputs(quantized, unseen)) / step
        assert (steps > 0.5).mean() < 0.1, optimized  # sums of learned scales are rounded, and a code may flip
        assert steps.max() < 1.5, optimized


def test_weights_are_integers_of_their_width(tiny_model: FloatModel, tmp_path: Path) -> None:
    sizes = []
    for bits, kind in ((8, KINDS.INT8), (4, KINDS.INT4), (3, KINDS.INT4)):
        quantized = hptq.quantize(tiny_model, noise(8), hptq.Config(weight_bits=bits))
        held = constants_of(export_onnx(tmp_path / "net.onnx", tiny_model, quantized))["conv1.weight.codes"]
        assert held.data_type == kind
        assert tuple(held.dims) == (6, 3, 3, 3)
        codes = onnx.numpy_helper.to_array(held).astype(int)
        grid, layer = quantized.weight_quantizers()["conv1"], quantized.graph.get_submodule("conv1")
        assert isinstance(layer, QuantizedLayer)
        assert np.array_equal(codes, grid.to_codes(layer.layer.weight).numpy())
        assert -(2 ** (bits - 1)) <= codes.min()
        assert codes.max() < 2 ** (bits - 1)
        sizes.append(len(held.raw_data))
    assert sizes[1] == sizes[0] / 2  # 2 in a byte


@pytest.mark.parametrize(
    ("bits", "kind", "clips"), [(8, KINDS.UINT8, 0), (4, KINDS.UINT8, 1), (3, KINDS.UINT8, 1), (16, KINDS.UINT16, 0)]
)
def test_tensors_are_integers_of_their_width(
    bits: int, kind: int, clips: int, tiny_model: FloatModel, tmp_path: Path
) -> None:
    quantized = hptq.quantize(tiny_model, noise(8), hptq.Config(activation_bits=bits))
    file = export_onnx(tmp_path / "net.onnx", tiny_model, quantized)
    assert constants_of(file)["relu.zero_point"].data_type == kind
    assert len([node for node in file.graph.node if node.name == "relu.clipped"]) == clips
    written = {node.name for node in file.graph.node if node.op_type == "QuantizeLinear"}
    assert {f"{name}.codes" for name in quantized.activation_quantizers()} <= written


def test_a_file_contains_its_metadata(tiny_model: FloatModel, tmp_path: Path) -> None:
    quantized = hptq.quantize(tiny_model, noise(8), hptq.Config())
    file = export_onnx(tmp_path / "net.onnx", tiny_model, quantized)
    about = {entry.key: json.loads(entry.value) for entry in file.metadata_props}
    assert about["model"] == "tiny"
    assert about["method"] == "hptq"
    assert about["mean"] == [0.5, 0.5, 0.5]
    assert about["config"]["weight_bits"] == 8
    (images,) = file.graph.input
    assert images.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert onnx.load(tmp_path / "net.onnx") == file


def test_a_layer_called_twice_has_a_weight_for_each_call(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).relu())

    model = as_model(Twice())
    quantized = hptq.quantize(model, noise(8), hptq.Config())
    file = export_onnx(tmp_path / "net.onnx", model, quantized)
    assert {"conv.weight.codes", "conv_1.weight.codes"} < constants_of(file).keys()
    assert by_runtime(tmp_path / "net.onnx", noise(4), optimized=True).shape == (4, 3, 8, 8)
    assert np.array_equal(by_runtime(tmp_path / "net.onnx", noise(4)), outputs(quantized, noise(4)))


# Operations


class Zoo(nn.Module):
    """One of every operation that has a translation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, padding="same"), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.norm, self.prelu = nn.BatchNorm2d(8), nn.PReLU(8)
        self.line, self.linear = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 6)
        self.pool, self.pad = nn.AvgPool2d(3, stride=2, padding=1), nn.ReflectionPad2d(1)
        self.smooth = nn.ModuleList([nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU(0.7), nn.LeakyReLU(0.2), nn.Mish()])
        self.register_buffer("shift", torch.linspace(0, 1, 8).reshape(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.conv(x)[:, :4].relu(), self.conv(x)[:, 4:, :, :]], dim=1)) + self.shift
        x = F.max_pool2d(self.prelu(x), 3, stride=2, padding=1) * 2 - 0.5
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        left, right = self.up(x).chunk(2, dim=1)
        x = torch.cat([F.hardswish(left), F.hardsigmoid(right) / 1.5], 1)
        x = F.channel_shuffle(F.pad(x, (1, 1, 0, 2)), 4)
        x = self.pool(self.pad(x))
        x = F.adaptive_avg_pool2d(x[:, :, :8, :8], 4)
        for function in self.smooth:
            x = function(x)
        x = x.flatten(2)
        x = self.line(x).transpose(1, 2)
        x = torch.matmul(x.softmax(-1), x.permute(0, 2, 1))
        x = x.view(x.shape[0], -1, 8).tanh().sigmoid()
        return F.log_softmax(self.linear(F.relu6(x).mean(1, keepdim=True)).squeeze(1), dim=1)


def test_every_operation_is_exported_in_float_and_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = as_model(Zoo()), tmp_path / "net.onnx"
    export_onnx(path, model)
    for optimized in (False, True):
        np.testing.assert_allclose(
            by_runtime(path, noise(5), optimized), outputs(model.net, noise(5)), rtol=1e-4, atol=1e-5
        )
    for bits in (8, 4):
        quantized = hptq.quantize(model, noise(16), hptq.Config(weight_bits=bits, activation_bits=bits))
        export_onnx(path, model, quantized)
        different = by_runtime(path, noise(5)) != outputs(quantized, noise(5))
        assert different.mean() < 0.1, bits
        assert np.isfinite(by_runtime(path, noise(5), optimized=True)).all()


class Around(nn.Module):
    """One operation on 8 maps of a convolution."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.conv, self.operation = nn.Conv2d(3, 8, 3, padding=1), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.conv(x)).flatten(1)


@pytest.mark.parametrize(
    "operation",
    [
        nn.Softplus(beta=2.0),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2),
        nn.Conv2d(8, 8, 2, padding="same"),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        lambda x: F.interpolate(x, scale_factor=1.7),
        lambda x: F.interpolate(x, size=(13, 11)),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
        lambda x: torch.cat([x, x * 2], axis=1),  # type: ignore[call-arg]
        lambda x: x - x.mean(axis=(2, 3), keepdims=True),
        lambda x: x.permute(dims=(0, 1, 3, 2)),
        lambda x: torch.split(x, split_size_or_sections=4, dim=1)[1],
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("optimized", [False, True])
def test_settings_of_operations_are_exported(operation: Any, optimized: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = as_model(Around(operation)), tmp_path / "net.onnx"
    export_onnx(path, model)
    np.testing.assert_allclose(
        by_runtime(path, noise(5), optimized), outputs(model.net, noise(5)), rtol=1e-4, atol=1e-5
    )
    quantized = hptq.quantize(model, noise(16), hptq.Config())
    export_onnx(path, model, quantized)
    step = max(grid.scale.item() for grid in quantized.activation_quantizers().values())
    assert np.abs(by_runtime(path, noise(5), optimized) - outputs(quantized, noise(5))).max() <= step


def test_arguments_without_translation_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="cannot be written to ONNX with the arguments"):
        export_onnx(tmp_path / "net.onnx", as_model(Around(lambda x: x * x.mean())))


@pytest.mark.parametrize("scale", [0.0, 1e-7])
def test_channels_without_weights_keep_their_bias(scale: float, tmp_path: Path) -> None:
    """Folding a batch norm of a pruned channel leaves a bias and no weight, whose product is below any 32-bit grid."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)]
    for layer in layers:
        layer.state_dict()["weight"][0] *= scale
        layer.state_dict()["bias"][0] = 1.0
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    model, path = as_model(net), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, noise(16), hptq.Config())
    export_onnx(path, model, quantized)
    step = max(grid.scale.item() for grid in quantized.activation_quantizers().values())
    assert np.abs(by_runtime(path, noise(20), optimized=True) - outputs(quantized, noise(20))).max() <= 2 * step


def test_a_network_with_two_outputs_is_exported(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.conv(x)
            return x.mean((2, 3)), x

    model = as_model(Two())
    export_onnx(tmp_path / "net.onnx", model)
    for found, wanted in zip(OnnxNetwork(tmp_path / "net.onnx")(noise(4)), model.net(noise(4)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet"])
def test_networks_of_torchvision_are_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    extra = {"init_weights": True} if name == "googlenet" else {}
    model = as_model(getattr(torchvision.models, name)(weights=None, **extra), 64)
    path = tmp_path / "net.onnx"
    export_onnx(path, model)
    expected = outputs(model.net, noise(2, 64))
    np.testing.assert_allclose(by_runtime(path, noise(2, 64)), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    quantized = hptq.quantize(model, noise(4, 64), hptq.Config(weight_bits=4, activation_bits=4))
    export_onnx(path, model, quantized)
    assert np.array_equal(by_runtime(path, noise(2, 64)), outputs(quantized, noise(2, 64)))
    assert by_runtime(path, noise(3, 64), optimized=True).shape == (3, 1000)


@pytest.mark.parametrize("name", detectors.NETS)
def test_backbone_neck_and_head_of_a_detector_are_exported(name: str, tmp_path: Path) -> None:
    model, images = models.load(name), noise(2, 64)
    export_onnx(tmp_path / "float.onnx", model)
    in_file, expected = OnnxNetwork(tmp_path / "float.onnx")(images), model.net(images)
    assert in_file.keys() == expected.keys() >= {"cls_logits", "bbox_regression"}
    for key, wanted in expected.items():
        torch.testing.assert_close(in_file[key], wanted, rtol=1e-3, atol=1e-3)
    quantized = hptq.quantize(model, images, hptq.Config(weight_bits=4))
    export_onnx(tmp_path / "quantized.onnx", model, quantized)
    in_file, expected = OnnxNetwork(tmp_path / "quantized.onnx")(images), quantized(images)
    for key, wanted in expected.items():  # sums in another order change a few codes, and so all later values
        assert (in_file[key] - wanted).abs().mean() < 0.05 * wanted.abs().mean(), key
    found = detectors.detector_of(model, OnnxNetwork(tmp_path / "quantized.onnx"))(list(torch.rand(1, 3, 64, 64)))
    assert found[0]["boxes"].shape[1] == 4


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).cumsum(1)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 2, 1)


def test_an_operation_without_translation_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(UnsupportedOperation, match=r"cumsum .*cannot be written to ONNX"):
        export_onnx(path, as_model(nn.Sequential(nn.Conv2d(3, 3, 1), Cumulative())))
    assert not path.exists()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")), "pads with mode 'circular'"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveMaxPool2d(3)), "windows overlap"),
    ],
)
def test_settings_without_translation_are_named(net: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match=message):
        export_onnx(tmp_path / "net.onnx", as_model(net))


# Real networks


@pytest.mark.parametrize(("bits", "num_images"), [(8, 1000), (4, 2000), pytest.param(8, None, marks=pytest.mark.slow)])
def test_a_real_network_keeps_its_accuracy_as_a_file(bits: int, num_images: int | None, tmp_path: Path) -> None:
    try:
        model, data = models.load("cifar10_resnet20"), datasets.load("cifar10", "test", num_images)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    images = normalise(datasets.sample(datasets.load("cifar10", "train"), 64, 0).images, model.mean, model.std)
    quantized = hptq.quantize(model, images, hptq.Config(weight_bits=bits, activation_bits=bits))
    export_onnx(tmp_path / "net.onnx", model, quantized)
    session = open_session(tmp_path / "net.onnx")
    right: dict[str, Any] = {"file": 0, "simulation": 0}
    for batch, labels in datasets.batches(data, model.mean, model.std, 32):
        (found,) = session.run(None, {"images": batch.numpy()})
        right["file"] += int((found.argmax(1) == labels.numpy()).sum())
        right["simulation"] += int((outputs(quantized, batch).argmax(1) == labels.numpy()).sum())
    assert right["file"] / len(data) == pytest.approx(
        right["simulation"] / len(data), abs=0.0015 if bits == 8 else 0.005
    )


def test_a_quantized_model_from_a_file_exports_the_same(tiny_model: FloatModel, tmp_path: Path) -> None:
    quantized = hptq.quantize(tiny_model, noise(8), hptq.Config())
    quantized.save(tmp_path / "net.safetensors")
    loaded = QuantizedModel.load(tmp_path / "net.safetensors", tiny_model)
    one = export_onnx(tmp_path / "one.onnx", tiny_model, quantized)
    assert one == export_onnx(tmp_path / "two.onnx", tiny_model, loaded)
