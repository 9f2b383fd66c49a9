"""The gradient of a network's first convolution."""

import pytest
import torch
from torch import nn

from dghlib.running.stems import Stem


def stem(kernel_size: int, stride: int, padding: int, channels: int = 3, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, kernel_size, stride, padding, bias=bias).requires_grad_(False)


def gradient(layer: nn.Module, images: torch.Tensor) -> torch.Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(layer(images).square().sum(), images)[0]


@pytest.mark.parametrize("size", [(32, 32), (33, 30), (7, 12)])
@pytest.mark.parametrize("form", [(7, 2, 3), (7, 2, 0), (5, 2, 2), (7, 3, 1), (11, 4, 2), (6, 2, 1), (7, 2, 6)])
def test_the_gradient_equals_that_of_torch(form: tuple[int, int, int], size: tuple[int, int]) -> None:
    if min(size) + 2 * form[2] < form[0]:
        pytest.skip("the image is smaller than the kernel")
    torch.manual_seed(0)
    layer, images = stem(*form, bias=True), torch.randn(3, 3, *size)
    wanted = gradient(layer, images)
    Stem.replace(layer)
    assert type(layer) is Stem
    torch.testing.assert_close(gradient(layer, images), wanted, rtol=1e-5, atol=1e-5)


def test_images_without_gradient_give_the_same_outputs() -> None:
    layer, images = stem(7, 2, 3), torch.randn(2, 3, 16, 16)
    wanted = layer(images)
    Stem.replace(layer)
    assert torch.equal(layer(images), wanted)


@pytest.mark.parametrize(
    "layer",
    [
        stem(3, 2, 1),
        stem(7, 1, 3),
        stem(7, 2, 3, channels=16),
        stem(5, 2, 5),
        nn.Conv2d(3, 8, 7, 2, 3),
        nn.Conv2d(3, 8, 7, 2, padding=(3, 0)).requires_grad_(False),
        nn.Conv2d(3, 8, 7, 2, 3, padding_mode="reflect").requires_grad_(False),
        nn.Conv2d(3, 9, 7, 2, 3, groups=3).requires_grad_(False),
        nn.BatchNorm2d(3),
    ],
    ids=[
        "small",
        "no stride",
        "features",
        "wide border",
        "trained",
        "not square",
        "reflecting",
        "groups",
        "no convolution",
    ],
)
def test_other_layers_are_unchanged(layer: nn.Module) -> None:
    before = type(layer)
    Stem.replace(layer)
    assert type(layer) is before
