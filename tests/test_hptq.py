"""HPTQ as a whole: identities, its 2 corrections, files, refusals, and a real network if its data is available."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tell_classes_apart
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dghlib import datasets, models
from dghlib.evaluation import top1
from dghlib.images import normalise
from dghlib.models import FloatModel
from dghlib.quantizers import QUANTIZERS, QuantizedModel, hptq, saved_facts
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import QuantizedLayer, mean_response


def noise(num_images: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def as_model(net: nn.Module, size: int = 8) -> FloatModel:
    shape = (3, size, size)
    return FloatModel(name="net", net=net.eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)


def outputs(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images)


def snr(quantized: nn.Module, model: FloatModel) -> float:
    """Return the power of the logits over that of their error, on images that calibration has not used."""
    images = noise(64, seed=9)
    expected = outputs(model.net, images)
    return float(expected.square().sum() / (outputs(quantized, images) - expected).square().sum())


# Identities


@pytest.mark.parametrize("policy", ["full", "academic"])
def test_32_bits_equal_float(tiny_model: FloatModel, policy: str) -> None:
    config = hptq.Config(weight_bits=32, activation_bits=32, bits=policy)
    quantized = hptq.quantize(tiny_model, noise(16), config)
    assert quantized.weight_quantizers() == quantized.activation_quantizers() == {}
    images = noise(8, seed=1)
    torch.testing.assert_close(outputs(quantized, images), outputs(tiny_model.net, images), rtol=1e-5, atol=1e-5)


def test_more_bits_are_nearer_to_float(tiny_model: FloatModel) -> None:
    """About four times the signal-to-noise ratio per bit; 16 bits are float to about 1e-4."""
    ratios = {
        bits: snr(hptq.quantize(tiny_model, noise(64), hptq.Config(weight_bits=bits, activation_bits=bits)), tiny_model)
        for bits in (2, 4, 8, 16)
    }
    assert ratios[16] > 1e6 > ratios[8] > 300 > ratios[4] > 10 > ratios[2]


@pytest.mark.parametrize("search", ["power_of_two", "free"])
def test_weights_and_tensors_have_the_wanted_bits(tiny_model: FloatModel, search: str) -> None:
    config = hptq.Config(weight_bits=3, activation_bits=4, weight_thresholds=search)
    quantized = hptq.quantize(tiny_model, noise(16), config)
    assert list(quantized.weight_quantizers()) == ["conv1", "conv2", "linear"]
    assert list(quantized.activation_quantizers()) == ["images", "relu", "conv2", "relu_1", "mean", "linear"]
    for module in quantized.modules():
        if isinstance(module, QuantizedLayer):
            used = module.quantized_weight().flatten(1)
            assert max(len(row.unique()) for row in used) <= 8
    assert len(outputs(quantized, noise(16)).unique()) <= 16
    scales = [grid.scale for grid in quantized.activation_quantizers().values()]
    assert all(torch.equal(scale.log2(), scale.log2().round()) for scale in scales)
    signed = {name for name, grid in quantized.activation_quantizers().items() if grid.signed}
    assert signed == {"images", "conv2", "linear"}


def test_only_other_images_give_another_model(tiny_model: FloatModel) -> None:
    config = hptq.Config(weight_bits=4, activation_bits=4)
    first, again, other = (hptq.quantize(tiny_model, noise(16, seed=s), config).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_batch_size_does_not_matter(tiny_model: FloatModel) -> None:
    configs = [hptq.Config(weight_bits=4, activation_bits=4, batch_size=size) for size in (5, 64)]
    one, many = (hptq.quantize(tiny_model, noise(17), config) for config in configs)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, many.state_dict()[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", QUANTIZERS.values(), ids=QUANTIZERS.keys())
def test_the_float_model_is_unchanged(method: Any, tiny_model: FloatModel) -> None:
    tell_classes_apart(tiny_model, noise(16))
    net = tiny_model.net.train()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()

    config = method.Config()
    few = {name: 2 for name in ("iterations", "step_iterations", "steps") if getattr(config, name, 0)}
    config = replace(config, **few)
    quantized = method.quantize(tiny_model, noise(16), config)

    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in net.parameters())  # type: ignore[arg-type]
    assert all(module.training for module in net.modules())
    assert torch.equal(random_state, torch.get_rng_state())
    assert not any(module.training for module in quantized.modules())
    assert not {p.data_ptr() for p in net.parameters()} & {t.data_ptr() for t in quantized.state_dict().values()}


def test_images_are_unchanged(tiny_model: FloatModel) -> None:
    images = noise(16)
    hptq.quantize(tiny_model, images, hptq.Config())
    assert torch.equal(images, noise(16))


def test_dead_channels_and_constant_tensors_are_quantized() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net.state_dict()["0.weight"].zero_()
    net.state_dict()["0.bias"].fill_(-1)
    model = as_model(net)
    images = noise(8)
    expected = outputs(net, images)
    got = outputs(hptq.quantize(model, images, hptq.Config()), images)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


# Corrections


def test_bias_correction_restores_the_mean() -> None:
    """With one 1x1 layer and float activations, the mean output equals that of the float network."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Flatten(2))
    images = noise(32) + torch.tensor([3.0, -1.0, 2.0]).view(3, 1, 1)
    expected = outputs(net, images).mean((0, 2))

    def error(correct: bool) -> float:
        config = hptq.Config(weight_bits=3, activation_bits=32, bias_correction=correct)
        quantized = hptq.quantize(as_model(net), images, config)
        return float((outputs(quantized, images).mean((0, 2)) - expected).abs().max())

    assert error(True) < 1e-5 < 0.05 < error(False)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2, stride=2),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.Linear(4, 6),
    ],
)
def test_mean_response_is_exact_without_borders(layer: Any) -> None:
    mean = torch.tensor([1.0, -2.0, 0.5, 3.0])
    constant = mean.view(1, 4, 1, 1).expand(1, 4, 9, 9) if layer.weight.ndim == 4 else mean.view(1, 4)
    with torch.no_grad():
        response = layer(constant) - layer.bias.view(-1, *[1] * (layer.weight.ndim - 2))
        expected = response.transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(mean_response(layer, layer.weight.data, mean).float(), expected)


def explicit_shift(
    model: FloatModel, quantized: QuantizedModel, tail: float, threshold: float, images: Tensor
) -> Tensor:
    """Do what MCT does to conv1, act, conv2: add the shift, pad with it, subtract its response from the bias."""
    net: Any = model.net
    grids, weights = quantized.activation_quantizers(), quantized.weight_quantizers()
    step = threshold / 16
    shift = torch.tensor(tail / step).ceil() * step
    unsigned = UniformQuantizer.from_threshold(torch.tensor(threshold), bits=4, signed=False)
    with torch.no_grad():
        x = F.conv2d(grids["images"](images), weights["conv1"](net.conv1.weight), net.conv1.bias)
        x = F.pad(unsigned(net.act(x) + shift), (1, 1, 1, 1), value=float(shift))
        weight = weights["conv2"](net.conv2.weight)
        return grids["conv2"](F.conv2d(x, weight, net.conv2.bias - shift * weight.sum((1, 2, 3))))


class Shifted(nn.Module):
    def __init__(self, act: nn.Module):
        super().__init__()
        self.conv1, self.act, self.conv2 = nn.Conv2d(3, 8, 1), act, nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(x)))


@pytest.mark.parametrize("act", [nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.ELU(alpha=0.1)])
def test_shift_equals_shifting_tensor_padding_and_bias(act: nn.Module) -> None:
    torch.manual_seed(0)
    net = Shifted(act)
    net.state_dict()["conv1.weight"].mul_(8)
    model, images = as_model(net), noise(8)
    config = hptq.Config(
        weight_bits=4, activation_bits=4, bias_correction=False, integer_biases=False, table_inputs=False
    )
    quantized = hptq.quantize(model, images, config)
    grid = quantized.activation_quantizers()["act"]
    assert not grid.signed
    assert grid.zero_point == 1
    tail = -float(outputs(nn.Sequential(net.conv1, act), images).min())
    expected = explicit_shift(model, quantized, tail, float(16 * grid.scale), images)
    torch.testing.assert_close(outputs(quantized, images), expected, rtol=1e-4, atol=1e-4)


def test_tensors_with_long_tails_or_several_readers_are_not_shifted() -> None:
    class Twice(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv1(x))
            return self.conv2(x) + x[:, :4]

    torch.manual_seed(0)
    for net, scale in ((Twice(nn.Hardswish()), 8), (Shifted(nn.Hardswish()), 1), (Shifted(nn.LeakyReLU()), 8)):
        net.state_dict()["conv1.weight"].mul_(scale)
        quantized = hptq.quantize(as_model(net), noise(8), hptq.Config(activation_bits=4))
        assert quantized.activation_quantizers()["act"].signed


def test_shift_passes_pooling_and_can_be_switched_off() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardswish(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 4))
    net.state_dict()["0.weight"].mul_(8)
    for shift in (True, False):
        quantized = hptq.quantize(as_model(net), noise(8), hptq.Config(shift_negative=shift))
        _, table, *shifted, _ = (grid.signed for grid in quantized.activation_quantizers().values())
        assert (table, shifted) == (False, [not shift, not shift])


# Quantized models


def test_copies_and_files_give_the_same_outputs(tiny_model: FloatModel, tmp_path: Path) -> None:
    config = hptq.Config(weight_bits=4, activation_bits=4)
    quantized = hptq.quantize(tiny_model, noise(16), config)
    expected = outputs(quantized, noise(4))

    quantized.save(tmp_path / "model.safetensors")
    loaded = QuantizedModel.load(tmp_path / "model.safetensors", tiny_model)

    assert torch.equal(outputs(copy.deepcopy(quantized), noise(4)), expected)
    assert torch.equal(outputs(loaded, noise(4)), expected)
    assert saved_facts(tmp_path / "model.safetensors") == loaded.about == quantized.about
    assert loaded.about["model"] == "tiny"
    assert hptq.Config(**loaded.about["config"]) == config


def test_files_keep_the_bias_that_correction_adds(tmp_path: Path) -> None:
    model = as_model(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5, bias=False))
    )
    quantized = hptq.quantize(model, noise(8), hptq.Config(weight_bits=4))
    quantized.save(tmp_path / "model.safetensors")
    loaded = QuantizedModel.load(tmp_path / "model.safetensors", model)
    assert torch.equal(outputs(loaded, noise(4)), outputs(quantized, noise(4)))


def test_files_of_other_networks_or_formats_are_refused(tiny_model: FloatModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    hptq.quantize(tiny_model, noise(4), hptq.Config()).save(path)
    with pytest.raises(ValueError, match="is not 'net' quantized, it holds 'tiny'"):
        QuantizedModel.load(path, as_model(nn.Sequential(nn.Conv2d(3, 4, 1))))
    with pytest.raises(FileNotFoundError, match="no quantized model at"):
        saved_facts(tmp_path / "other")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a quantized model"):
        QuantizedModel.load(path, tiny_model)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("graph.conv1.weight_quantizer.scale", lambda values: values * 0),
        ("graph.conv1.weight_quantizer.scale", lambda values: -values),
        ("graph.activation_quantizers.relu.scale", lambda values: values * torch.nan),
        ("graph.activation_quantizers.relu.zero_point", lambda values: values + 256),
        ("graph.activation_quantizers.relu.zero_point", lambda values: values.float()),
        ("graph.linear.layer.bias", lambda values: values * torch.inf),
        ("header", lambda text: text.replace("[4, true]", "[true, 4]")),
        ("header", lambda text: text.replace("[4, true]", "[4.0, true]")),
        ("header", lambda text: text.replace("[4, true]", "[9, true]")),
        ("header", lambda text: text.replace("[4, true]", "4")),
        ("header", lambda text: "[" * 100_000),
        ("header", lambda text: text.replace('"about": {', '"about": {"preparation": {"no": {}}, ')),
        ("header", lambda text: text.replace('"about": {', '"about": {"preparation": ["equalize"], ')),
        ("header", lambda text: text.replace('"about": {', '"about": {"preparation": {"equalize": {"no": 1}}, ')),
        ("header", lambda text: '{"format": 1, "about": [], "weights": {}, "activations": {}}'),
    ],
)
def test_impossible_grids_of_a_file_are_refused(
    tiny_model: FloatModel, tmp_path: Path, name: str, change: Callable[[Any], Any]
) -> None:
    path = tmp_path / "model.safetensors"
    hptq.quantize(tiny_model, noise(4), hptq.Config(weight_bits=4)).save(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()["dghlib"]
        tensors = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    if name == "header":
        changed = change(header)
        assert changed != header
        header = changed
    else:
        tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"dghlib": header})
    with pytest.raises(ValueError, match=r"model\.safetensors is not .*quantize"):
        QuantizedModel.load(path, tiny_model)


# Refusals


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight_bits": 9}, "weight_bits must be 2 to 8, 16, or 32 for float; got 9"),
        ({"activation_bits": 1}, "activation_bits must be"),
        ({"bits": "acdemic"}, "bits must be one of 'full', 'academic', got 'acdemic'"),
        ({"weight_thresholds": "pot"}, "weight_thresholds must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hptq.Config(**setting)


def broken(images: Tensor) -> Tensor:
    images[1, 0, 0, 0] = torch.nan
    return images


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (noise(4)[0], ValueError, r"images \(N, 3, 8, 8\), got \(3, 8, 8\)"),
        (noise(4, size=9), ValueError, r"got \(4, 3, 9, 9\)"),
        (noise(4)[:, :1], ValueError, r"got \(4, 1, 8, 8\)"),
        (noise(0), ValueError, "at least one image"),
        (noise(4).double(), TypeError, "float32.*got torch.float64"),
        ((255 * noise(4).abs()).byte(), TypeError, "normalised with the network's mean and std; got torch.uint8"),
        (broken(noise(4)), ValueError, "1 of 4 calibration images hold NaN or Inf"),
        (255 * noise(4).sigmoid(), ValueError, r"reach 2\d\d.*, but normalised pixels end at 2"),
        ([noise(1)], TypeError, "single tensor .* got list"),
    ],
)
def test_bad_images_are_refused(tiny_model: FloatModel, images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hptq.quantize(tiny_model, images, hptq.Config())


def test_a_few_outlying_pixels_are_accepted(tiny_model: FloatModel) -> None:
    images = noise(16)
    images[3, 1, 2, 2] = 100.0  # generators that do not clip make such pixels, a few in 100 000
    hptq.quantize(tiny_model, images, hptq.Config())
    with pytest.raises(ValueError, match=r"0\.13% of the values are beyond 20 times that"):
        hptq.quantize(tiny_model, images[2:6], hptq.Config())


def test_tensors_that_become_nan_are_named() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.sqrt(x + 10))

    with pytest.raises(ValueError, match="in tensor 'sqrt', values reach from nan to nan"):
        hptq.quantize(as_model(Root()), noise(4) - 12, hptq.Config())


# A real network


def test_resnet20_loses_little_accuracy_at_eight_bits() -> None:
    """Calibrated with 128 training images, measured on 500 test images."""
    try:
        model = models.load("cifar10_resnet20")
        calibration, test = datasets.load("cifar10", "train", 128), datasets.load("cifar10", "test", 500)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    images = normalise(calibration.images, model.mean, model.std)

    def accuracy(net: nn.Module) -> float:
        return top1(net, datasets.batches(test, model.mean, model.std, 100))

    quantized = {
        bits: accuracy(hptq.quantize(model, images, hptq.Config(weight_bits=bits[0], activation_bits=bits[1])))
        for bits in ((8, 8), (4, 4))
    }
    assert abs(quantized[8, 8] - accuracy(model.net)) <= 1
    assert 65 < quantized[4, 4] < quantized[8, 8]
