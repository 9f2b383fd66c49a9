"""Every operation with a translation to ONNX gives the same results as in torch, for any number of images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dghlib.export import UnsupportedOperation, export_onnx, open_session
from dghlib.models import FloatModel
from dghlib.quantizers import hptq

ROWS = torch.tensor([0.5, -1.0, 2.0, 1.0, 0.1, -0.3, 1.5, 0.7])
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": lambda x: F.interpolate(x, size=(13, 5), mode="bilinear"),
    "bilinear by a factor": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bilinear by a fractional factor": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, size=(12, 12), mode="bicubic"),
    "nearest to a size": lambda x: F.interpolate(x, size=(9, 3)),
    "nearest by a factor": lambda x: F.interpolate(x, scale_factor=(3, 0.6)),
    "nearest, exact": lambda x: F.interpolate(x, size=(5, 14), mode="nearest-exact"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": nn.PixelUnshuffle(4),
    "overlapping pooling": nn.AdaptiveAvgPool2d((3, 5)),
    "slices with steps": lambda x: x[..., ::3, 1:-1:2],
    "integers and new axes": lambda x: x[:, 3, None, -1, 2:],
    "a tensor of indices": lambda x: x[:, torch.tensor([7, 0, 0, 3])],
    "a list of indices": lambda x: x[:, :, [1, 5]],
    "select": lambda x: x.select(1, -1) + x.narrow(2, 1, 1).squeeze(2).index_select(1, torch.tensor([2] * 8)),
    "roll": lambda x: torch.roll(x, shifts=(-2, 3), dims=(2, 3)),
    "flip": lambda x: x.flip(-1, 1),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 5, -1, -1),
    "tokens": lambda x: torch.cat([ROWS.view(1, 1, 8).expand(len(x), 2, -1), x.flatten(2)[:, :, :8]], 1),
    "tokens by repetition": lambda x: torch.cat([ROWS.view(1, 1, 8).repeat(len(x), 1, 1), x.flatten(2)[:, :, :8]], 1),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "the shape of another tensor": lambda x: x.flatten(1).reshape_as(x) + x.flatten(2).view_as(x),
    "stack": lambda x: torch.stack([x, x * 2], dim=2),
    "windows": lambda x: x.unfold(2, 4, 2).unfold(-2, 3, 1),
    "all parts": lambda x: torch.cat(x.chunk(2, dim=1), dim=2),
    "unbind": lambda x: x.unbind(1)[3] - x.unbind(-1)[0],
    "chunk": lambda x: torch.cat(list(x.chunk(3, dim=1))[::-1], 1),
    "sum": lambda x: x.sum((2, 3)) + torch.sum(x, dim=1, keepdim=True).flatten(1)[:, :8],
    "amax": lambda x: x.amax((2, 3)) - torch.amin(x, dim=(2, 3)),
    "max along an axis": lambda x: torch.max(x, 1, keepdim=True)[0] + x.max(dim=2).values.unsqueeze(1),
    "maximum": lambda x: torch.maximum(x, x.neg()) + torch.min(x, x * 2),
    "clamp": lambda x: x.clamp(-0.1, 0.2) + x.clamp_min(0) + torch.clamp(x, max=0.1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "norm": lambda x: x.norm(dim=1) + torch.norm(x, 1, dim=(2,)).mean(1, keepdim=True).mean(2, keepdim=True),
    "powers": lambda x: x.pow(2) + (x.abs() + 0.1) ** 0.5 + (x * x + 1).sqrt(),
    "exp, log, neg": lambda x: torch.exp(-x) + torch.log(abs(x) + 1) + x.erf() + 1 / (x.exp() + 1).reciprocal(),
    "where": lambda x: torch.where(x > 0.1, x, x * 0.3) + x.masked_fill(x != x.abs(), 2.0),
    "comparisons": lambda x: x * (x <= 0).float() + (x >= 0.3).to(x.dtype),
    "einsum": lambda x: torch.einsum("n c h w, c -> n h w", x, ROWS),
    "einsum of two": lambda x: torch.einsum("nchw,nchv->nwv", x, x),
    "layer norm": nn.LayerNorm(8, eps=0.1),
    "layer norm as a function": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,), ROWS, ROWS + 1),
    "layer norm without weights": lambda x: F.layer_norm(x, (8, 8)),
    "group norm without weights": nn.GroupNorm(2, 8, affine=False),
    "group norm as a function": lambda x: F.group_norm(x, 4, ROWS, ROWS),
    "attention": lambda x: F.scaled_dot_product_attention(x.flatten(2), x.flatten(2)[:, 2:], x.flatten(2)[:, 2:]),
    "patches": lambda x: F.unfold(x, (3, 2), dilation=2, padding=1, stride=(2, 3)),
    "overlapping patches added up": lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), 8, 3, padding=1, stride=2),
    "average of vectors": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, True)[..., 1:] + F.max_pool1d(x.flatten(2), 2),
    "swapped axes": lambda x: x.swapaxes(1, 2) + torch.swapdims(x, 3, 1),
    "rows before images": lambda x: x.flatten(2).permute(2, 0, 1).reshape(64, -1, 2, 4).mean((0, 3)),
}


class Around(nn.Module):
    """One operation on 8 maps of a convolution."""

    def __init__(self, operation: Any):
        super().__init__()
        self.conv, self.operation = nn.Conv2d(3, 8, 3, padding=1), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.conv(x)).flatten(1)


def as_model(operation: Any) -> FloatModel:
    torch.manual_seed(0)
    net = Around(operation).eval()
    return FloatModel(name="net", net=net, image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def noise(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("name", OPERATIONS)
def test_files_compute_the_same_as_torch(name: str, tmp_path: Path) -> None:
    model, path = as_model(OPERATIONS[name]), tmp_path / "net.onnx"
    quantized = hptq.quantize(model, noise(8), hptq.Config(activation_bits=16))
    for written, tolerance in ((None, 1e-5), (quantized, 1e-3)):
        export_onnx(path, model, written)
        for count in (1, 5):
            images = noise(count)
            with torch.no_grad():
                expected = (written or model.net)(images).numpy()
            for optimized in (False, True):
                (found,) = open_session(path, optimized=optimized, threads=1).run(None, {"images": images.numpy()})
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=tolerance * np.abs(expected).max())


def test_nearest_interpolation_takes_the_pixels_of_torch(tmp_path: Path) -> None:
    for before, after in ((14, 8), (5, 9), (7, 23), (24, 10)):
        net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Upsample(size=(after, after))).eval()
        model = FloatModel(name="net", net=net, image_shape=(1, before, before), mean=(0.5,), std=(0.25,))
        export_onnx(tmp_path / "net.onnx", model)
        images = torch.randn(2, 1, before, before, generator=torch.Generator().manual_seed(0))
        (found,) = open_session(tmp_path / "net.onnx", threads=1).run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, net(images).numpy(), rtol=1e-5, atol=1e-6)


def test_operations_that_return_several_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match=r"topk \(node"):
        export_onnx(tmp_path / "net.onnx", as_model(lambda x: torch.topk(x, 3, 1)[0]))


class Upsampled(nn.Module):
    """A map that is interpolated to the size of the image and read by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(F.interpolate(self.down(x), size=x.shape[-2:], mode="bilinear", align_corners=False))


def test_interpolation_between_integers_runs_under_the_default_optimizer(tmp_path: Path) -> None:
    model = FloatModel(
        name="upsampled", net=Upsampled().eval(), mean=(0.0,) * 3, std=(1.0,) * 3, image_shape=(3, 16, 16)
    )
    images = torch.randn(4, 3, 16, 16)
    quantized = hptq.quantize(model, images, hptq.Config())
    export_onnx(tmp_path / "up.onnx", model, quantized)
    (found,) = open_session(tmp_path / "up.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, quantized(images).detach().numpy(), atol=1e-4)
