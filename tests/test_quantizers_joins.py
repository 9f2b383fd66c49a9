"""Concatenated tensors with very different ranges keep their own grids, and a warning says so."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dghlib.export import export_onnx, open_session
from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel, genie_m, hptq, in_float, squant


class Head(nn.Module):
    """Boxes of `reach` pixels and scores from 0 to 1; `end` reads both."""

    def __init__(self, reach: float, end: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16)
        self.box, self.score = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)
        self.reach, self.end = reach, end

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.end(torch.cat((self.reach * self.box(x).sigmoid(), self.score(x).sigmoid()), 1))


def head(reach: float, end: nn.Module | None = None) -> FloatModel:
    net = Head(reach, end or nn.Flatten(2)).eval()
    return FloatModel(name="head", net=net, image_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, task="detection")


def noise() -> Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


GENIE = genie_m.Config(weight_bits=8, activation_bits=8, iterations=1)


@pytest.mark.parametrize(
    ("method", "config"), [(hptq, hptq.Config()), (genie_m, GENIE), (squant, squant.Config())], ids=lambda each: "-"
)
def test_scores_beside_boxes_in_pixels_keep_their_precision(
    method: Any, config: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = head(640)
    with caplog.at_level(logging.WARNING):
        quantized = method.quantize(model, noise(), config)
    assert "cat concatenates tensors with ranges from" in caplog.text
    with torch.no_grad():
        found, wanted = quantized(noise()), model.net(noise())
    assert (found[:, 4:] - wanted[:, 4:]).abs().max() < 0.05  # on the grid of the boxes, all would be 0
    assert (found[:, :4] - wanted[:, :4]).abs().max() < 0.05 * 640
    export_onnx(tmp_path / "net.onnx", model, quantized)
    (by_runtime,) = open_session(tmp_path / "net.onnx").run(None, {"images": noise().numpy()})
    assert np.abs(by_runtime - found.numpy()).mean() < 0.1


def tensors(quantized: QuantizedModel) -> list[str]:
    return list(quantized.activation_quantizers())


@pytest.mark.parametrize(("reach", "one_grid"), [(1, True), (12, True), (20, False)])
def test_outputs_share_a_grid_that_keeps_half_of_the_bits(reach: float, one_grid: bool) -> None:
    """4 of 8 bits are kept at 1/16 of the range; sigmoids of these images reach almost 1."""
    assert ("cat" in tensors(hptq.quantize(head(reach), noise(), hptq.Config()))) is one_grid


@pytest.mark.parametrize(("reach", "one_grid"), [(20, True), (200, True), (640, False)])
def test_layers_read_one_grid_unless_a_part_would_be_all_zero(
    reach: float, one_grid: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(2)
    model = head(reach, nn.Conv2d(7, 4, 1))
    quantized = hptq.quantize(model, noise(), hptq.Config())
    assert ("cat" in tensors(quantized)) is one_grid
    assert ("each keeps its own grid" in caplog.text) is not one_grid
    assert in_float(quantized) == ([] if one_grid else ["end: reads cat, which has no grid"])


def test_files_keep_joins_without_a_grid(tmp_path: Path) -> None:
    model = head(640)
    quantized = hptq.quantize(model, noise(), hptq.Config())
    quantized.save(tmp_path / "net.safetensors")
    again = QuantizedModel.load(tmp_path / "net.safetensors", model)
    with torch.no_grad():
        assert torch.equal(again(noise()), quantized(noise()))
