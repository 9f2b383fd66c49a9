"""Networks that users reported failing in other tools: all layers are quantized, and files equal the simulation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dghlib import datasets, models
from dghlib.evaluation import top1
from dghlib.export import export_onnx, open_session
from dghlib.generators import dgh
from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel, hptq
from dghlib.quantizers.operations import is_batch_norm

SIZE = 16


class Normed(nn.BatchNorm2d):
    """A batch norm as in timm: it reads the number of axes, and calls the function."""

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.ndim == 4, "maps")
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.1, self.eps)


class Affine(nn.Module):
    """A batch norm as in detectors: scale and shift are computed once."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        scale = norm.weight.detach() * (norm.get_buffer("running_var") + norm.eps).rsqrt()
        shift = norm.bias.detach() - norm.get_buffer("running_mean") * scale
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale") + self.get_buffer("shift")


class Frozen(nn.Module):
    """As it is written most often: scale and shift from the statistics, in each pass."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        for name, value in norm.state_dict().items():
            self.register_buffer(name, value.clone())

    def forward(self, x: Tensor) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (self.get_buffer(name) for name in names)
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (bias - mean * scale).view(1, -1, 1, 1)


def uneven(kind: type[nn.BatchNorm2d], channels: int) -> nn.BatchNorm2d:
    """Return a norm with very different variances, which must be folded before rounding."""
    norm = kind(channels)
    norm.get_buffer("running_var").copy_(torch.rand(channels) ** 6 + 1e-4)
    return norm


class Network(nn.Module):
    """Convolutions c and d (depthwise) with norms a and b, and a linear layer f."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], norm: Any = nn.BatchNorm2d, wrap: Any = None):
        super().__init__()
        torch.manual_seed(3)
        self.c, self.d, self.f = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 4)
        self.a, self.b = uneven(norm, 8), uneven(norm, 8)
        if wrap:
            self.a, self.b = wrap(self.a), wrap(self.b)
        self.written = forward

    def body(self, x: Tensor) -> Tensor:
        return F.relu6(self.b(self.d(F.relu(self.a(self.c(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def plain(net: Any, x: Tensor) -> Tensor:
    return net.f(net.body(x).mean((2, 3)))


def casts(net: Any, x: Tensor) -> Tensor:
    return plain(net, x.to("cpu").float().contiguous())


def read_besides(net: Any, x: Tensor) -> Tensor:
    return plain(net, x) / net.f.weight.norm(dim=1)


def pooled_over_the_whole(net: Any, x: Tensor) -> Tensor:
    x = net.body(x)
    return net.f(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


def padded_by_need(net: Any, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if height % 7 or width % 7:
        x = F.pad(x, (0, -width % 7, 0, -height % 7))
    first, second = list(net.body(x).chunk(2, 1))
    return net.f(F.interpolate(torch.cat((first, second), 1), size=(height, width)).mean((2, 3)))


def largest(net: Any, x: Tensor) -> Tensor:
    x = net.body(x)
    return net.f(torch.max(x, 2)[0].mean(2))


def weighed_by_places(net: Any, x: Tensor) -> Tensor:
    """Detectors decode boxes in this way: only the size and the type of the maps are read."""
    x = net.body(x)
    places = torch.arange(x.shape[3]).type_as(x) + 0.5
    return net.f((x * places).mean((2, 3)) * x.new_full((1, 8), 0.25) + torch.ones_like(x)[:, :, 0, 0])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a norm that reads the number of axes": lambda: Network(plain, Normed),
    "a norm of constants": lambda: Network(plain, wrap=Affine),
    "a norm of buffers": lambda: Network(plain, wrap=Frozen),
    "casts without effect": lambda: Network(casts),
    "a weight with another reader": lambda: Network(read_besides),
    "pooling over the size of a map": lambda: Network(pooled_over_the_whole),
    "padding that depends on the size": lambda: Network(padded_by_need),
    "tensors created like others": lambda: Network(weighed_by_places),
    "a maximum with its indices": lambda: Network(largest),
    "parallel": lambda: nn.Sequential(nn.DataParallel(Network(plain)), nn.Linear(4, 4)),
}


def as_model(net: nn.Module, size: int = SIZE, task: str = "classification") -> FloatModel:
    shape = (3, size, size)
    return FloatModel(name="net", net=net.eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3, task=task)


def decibels(wanted: Tensor, found: Tensor) -> float:
    return 10 * math.log10(wanted.square().sum() / (wanted - found).square().sum())


@pytest.mark.parametrize("task", ["classification", "detection"])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_layers_of_a_reported_network_are_quantized(name: str, task: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    model, images, path = as_model(net, task=task), torch.randn(64, 3, SIZE, SIZE), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, images, hptq.Config())
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules())
    assert len(quantized.weight_quantizers()) == layers
    assert not any(is_batch_norm(module) for module in quantized.graph.modules())
    with torch.no_grad():
        found = quantized(images)
        assert decibels(net(images), found) > 25  # 14 dB with a norm that is not folded
    export_onnx(path, model, quantized)
    assert np.array_equal(open_session(path).run(None, {"images": images.numpy()})[0], found.numpy())


class TakesBytes(nn.Module):
    """A network for pixels from 0 to 255, which it normalises itself."""

    def __init__(self, model: FloatModel):
        super().__init__()
        self.net, self.mean, self.std = model.net, model.mean[0], model.std[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x / 255 - self.mean) / self.std)


def quality(model: FloatModel) -> float:
    """Return the top-1 in percent after calibration of 8 bits with a few of DGH's images."""
    images = dgh.generate(model, dgh.Config(num_images=16, batch_size=16, steps=20), progress=False)
    quantized: QuantizedModel = hptq.quantize(model, images, hptq.Config())
    test = datasets.load("shapes", "test", 200)
    return top1(quantized, datasets.batches(test, model.mean, model.std, 50))


def test_networks_that_take_bytes_are_as_accurate_as_their_twin() -> None:
    """With images that were nearly black, the top-1 fell from 87 to 4 %."""
    twin = models.load("shapes_residual")
    raw = FloatModel(
        name="raw", net=TakesBytes(twin).eval(), image_shape=(3, 32, 32), mean=(0.0,) * 3, std=(1 / 255,) * 3
    )
    of_twin, of_raw = quality(twin), quality(raw)
    assert of_twin > 70
    assert abs(of_raw - of_twin) < 5
