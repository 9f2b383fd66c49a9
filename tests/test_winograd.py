"""3x3 convolutions by Winograd's algorithm."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dghlib.running.winograd import CHANNELS, Winograd


def layer(channels: int = CHANNELS, out: int = CHANNELS, size: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, **{"padding": 1} | settings).requires_grad_(False)  # type: ignore[arg-type]


def output_and_gradient(convolution: Callable[[Tensor], Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
    maps = maps.clone().requires_grad_()
    output = convolution(maps)
    return output.detach(), torch.autograd.grad(output.square().sum(), maps)[0]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (4, 4), (7, 7), (14, 9), (1, 6)])
@pytest.mark.parametrize("out", [CHANNELS, CHANNELS + 16])
def test_outputs_and_gradients_equal_those_of_torch(size: tuple[int, int], out: int) -> None:
    torch.manual_seed(0)
    convolution, maps = layer(out=out), torch.randn(3, CHANNELS, *size)
    wanted = output_and_gradient(convolution, maps)
    Winograd.replace(convolution)
    assert type(convolution) is Winograd
    for value, reference in zip(output_and_gradient(convolution, maps), wanted, strict=True):
        assert (value - reference).abs().max() < 2e-5 * reference.abs().max()


def test_images_are_processed_in_groups() -> None:
    torch.manual_seed(0)
    convolution, maps = layer(bias=False), torch.randn(41, CHANNELS, 13, 13)  # not a multiple of the group size
    wanted = convolution(maps)
    Winograd.replace(convolution)
    assert (convolution(maps) - wanted).abs().max() < 2e-5 * wanted.abs().max()


def test_our_own_convolution_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = layer()
    Winograd.replace(convolution)
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    convolution(torch.randn(2, CHANNELS, 8, 8))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own code ignores it
def test_a_compiled_network_is_one_graph() -> None:
    convolution, maps = layer(), torch.randn(2, CHANNELS, 8, 8)
    wanted = output_and_gradient(convolution, maps)
    Winograd.replace(convolution)
    found = output_and_gradient(torch.compile(convolution, backend="eager", fullgraph=True), maps)
    torch.testing.assert_close(found, wanted)


def test_inputs_and_outputs_are_channels_last() -> None:
    convolution, maps = layer(), torch.randn(2, CHANNELS, 7, 8)
    Winograd.replace(convolution)
    for value in output_and_gradient(convolution, maps.to(memory_format=torch.channels_last)):
        assert value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "other",
    [
        layer(CHANNELS - 1),
        layer(out=CHANNELS - 1),
        layer(stride=2),
        layer(padding=0),
        layer(padding=2, dilation=2),
        layer(groups=CHANNELS),
        layer(padding_mode="circular"),
        layer(padding="same"),
        layer(size=5, padding=2),
        layer().double(),
        layer().requires_grad_(True),
        nn.BatchNorm2d(CHANNELS),
    ],
    ids=[
        "few in",
        "few out",
        "stride",
        "no border",
        "dilation",
        "groups",
        "circular",
        "padding by name",
        "5x5",
        "double",
        "trained",
        "no convolution",
    ],
)
def test_other_layers_are_unchanged(other: nn.Module) -> None:
    before = type(other)
    Winograd.replace(other)
    assert type(other) is before
