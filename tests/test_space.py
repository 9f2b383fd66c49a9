"""Images for any space: networks that take unnormalised pixels get the images of their normalised twin."""

from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_model, make_tiny_transformer
from torch import Tensor, nn

from dghlib.generators import FOR_TRANSFORMERS, GENERATORS, deep_inversion
from dghlib.images import per_channel
from dghlib.models import FloatModel
from dghlib.synthesis.space import COLOUR_MEAN, COLOUR_STD, brought_over, is_normalised, working_twin

BUDGET = {"num_images": 6, "batch_size": 4, "steps": 8}
IN_PIXELS = [name for name in GENERATORS if name != "genq"]  # GenQ makes pixels, whatever the network takes


class NormalisesItself(nn.Module):
    """A network that takes pixels from 0 to `white`."""

    def __init__(self, net: nn.Module, white: float):
        super().__init__()
        self.net, self.white = net, white

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images / self.white - per_channel(COLOUR_MEAN, images)) / per_channel(COLOUR_STD, images))


def _taking_pixels(model: FloatModel, white: float) -> FloatModel:
    net = NormalisesItself(model.net, white).eval()
    return replace(model, net=net, mean=(0.0,) * 3, std=(1 / white,) * 3)


def _pixels(name: str, model: FloatModel) -> Tensor:
    config = GENERATORS[name].PRESETS["default"]
    config = replace(config, **{key: value for key, value in BUDGET.items() if hasattr(config, key)})
    images = GENERATORS[name].generate(model, config, progress=False)
    return images * per_channel(model.std, images) + per_channel(model.mean, images)


@pytest.mark.parametrize("name", IN_PIXELS)
def test_networks_that_take_pixels_get_the_images_of_their_twin(name: str) -> None:
    model = make_tiny_transformer() if name in FOR_TRANSFORMERS else make_tiny_model()
    model = replace(model, mean=COLOUR_MEAN, std=COLOUR_STD)
    expected = _pixels(name, model)
    for white in (1.0, 255.0):
        torch.testing.assert_close(_pixels(name, _taking_pixels(model, white)), expected, rtol=0, atol=5e-4)


def test_adaptive_images_equal_those_of_both_twins() -> None:
    model, student = (replace(make_tiny_model(seed), mean=COLOUR_MEAN, std=COLOUR_STD) for seed in (0, 1))
    config = replace(deep_inversion.PRESETS["adi"], num_images=4, batch_size=4, steps=8)
    expected = deep_inversion.generate(model, config, progress=False, student=student)
    of_pixels = deep_inversion.generate(
        _taking_pixels(model, 255), config, progress=False, student=_taking_pixels(student, 1)
    )
    torch.testing.assert_close(
        of_pixels / 255, expected * per_channel(COLOUR_STD, expected) + per_channel(COLOUR_MEAN, expected)
    )


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (COLOUR_MEAN, COLOUR_STD),
        ((0.5,) * 3, (0.5,) * 3),
        ((0.1307,), (0.3081,)),
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ((0.42,) * 3, (0.26,) * 3),
    ],
)
def test_a_space_of_normalised_images_is_unchanged(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    assert is_normalised(mean, std)
    model = replace(make_tiny_model(), image_shape=(len(mean), 8, 8), mean=mean, std=std)
    assert working_twin(model) is model
    images = torch.randn(2, len(mean), 8, 8)
    assert brought_over(images, model, model) is images


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.0,), (1.0,)), ((0.0,), (1 / 255,)), ((0.5,), (1.0,)), ((0.45, 0.45), (0.2, 1.0)), ((0.5,), (1 / 255,))],
)
def test_in_other_spaces_the_twin_gives_the_network_the_same_pixels(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    model = FloatModel(name="sees", net=nn.Identity(), image_shape=(len(mean), 2, 2), mean=mean, std=std)
    twin = working_twin(model)
    assert is_normalised(twin.mean, twin.std)
    pixels = torch.rand(3, *model.image_shape)
    shown = (pixels - per_channel(twin.mean, pixels)) / per_channel(twin.std, pixels)
    expected = (pixels - per_channel(mean, pixels)) / per_channel(std, pixels)
    torch.testing.assert_close(twin.net(shown), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(brought_over(shown, twin, model), expected, rtol=1e-5, atol=1e-4)
