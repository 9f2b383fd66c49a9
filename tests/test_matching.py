"""Distances between statistics, each by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dghlib.running.batchnorm import StoredStatistics, moments, stored_statistics
from dghlib.synthesis.matching import (
    STD_EPSILON,
    batch_norm_distance,
    batch_norm_norms,
    channel_weights,
    measure,
    output_range,
    slack_penalty,
    with_pixels,
)

TWO_LAYERS = StoredStatistics(
    names=("a", "b"), sizes=(2, 1), mean=torch.tensor([0.0, 1.0, 2.0]), variance=torch.tensor([1.0, 4.0, 9.0])
)


def _moments(mean: list[float], variance: list[float]) -> torch.Tensor:
    first, spread = torch.tensor(mean), torch.tensor(variance)
    return torch.stack([first, spread + first.square()])


def test_distance_of_variances_summed_by_hand():
    measured = _moments([1, 1, 0], [2, 4, 16])
    weights = channel_weights(TWO_LAYERS.sizes, "sum", torch.device("cpu"))
    # means: 1 + 0 + 4; variances: 1 + 0 + 49
    assert batch_norm_distance(measured, TWO_LAYERS, weights, "variance").item() == pytest.approx(55)


def test_distance_of_deviations_averaged_by_hand():
    measured = _moments([1, 1, 0], [4, 4, 16])
    weights = channel_weights(TWO_LAYERS.sizes, "mean", torch.device("cpu"))
    # layer a: (1 + 1 + 0 + 0) / 2 channels; layer b: 4 + 1; mean over 2 layers
    assert batch_norm_distance(measured, TWO_LAYERS, weights, "std").item() == pytest.approx((1 + 5) / 2, rel=1e-4)


def test_distance_in_units_of_layers_by_hand():
    measured = _moments([1, 1, 0], [4, 4, 16])
    units = TWO_LAYERS.units()
    # The mean variance of layer a is 2.5, that of layer b is 9.
    torch.testing.assert_close(units, torch.tensor([[2.5**0.5, 2.5**0.5, 3], [2.5, 2.5, 9]]))
    weights = channel_weights(TWO_LAYERS.sizes, "mean", torch.device("cpu"))
    relative = batch_norm_distance(measured / units, TWO_LAYERS.divided_by(units), weights, "std")
    assert relative.item() == pytest.approx((1 / 2.5 + 5 / 9) / 2, rel=1e-4)


@pytest.mark.parametrize("variance", [0.0, 1e-40, 1e-8])
def test_a_layer_without_variance_is_not_scaled(variance):
    dead = replace(TWO_LAYERS, variance=torch.tensor([variance, variance, 9.0]))
    assert dead.units()[0].tolist() == [1, 1, 3]


def test_norms_by_hand():
    measured = _moments([3, 5, 0], [1, 4, 16])
    # layer a: errors of means 3 and 4, so 5; variances right. layer b: errors of the mean 2, of the variance 7
    assert batch_norm_norms(measured, TWO_LAYERS).tolist() == pytest.approx([5, 2 + 7])


def test_a_constant_channel_has_a_finite_gradient():
    measured = _moments([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]).requires_grad_()
    weights = channel_weights(TWO_LAYERS.sizes, "mean", torch.device("cpu"))
    batch_norm_distance(measured, TWO_LAYERS, weights, "std").backward()
    assert measured.grad is not None
    assert measured.grad.isfinite().all()


def test_slack_by_hand():
    last = torch.stack([_moments([5], [9]), _moments([2], [64])])
    # delta = 0.5 * 9 = 4.5; image 0: error of the mean 3, squared 9; image 1: error of the std 5, squared 25
    penalty = slack_penalty(last, TWO_LAYERS, 0.5, "std")
    torch.testing.assert_close(penalty, torch.tensor([9 - 4.5, 25 - 4.5]), rtol=1e-4, atol=10 * STD_EPSILON)


def test_output_range_of_any_shape():
    assert output_range(torch.tensor([[1.0, -2.0, 4.0], [0.0, 0.0, 0.0]])).tolist() == [6, 0]
    assert output_range(torch.arange(16.0).view(2, 2, 2, 2)).tolist() == [7, 7]


def test_output_range_ignores_integer_outputs():
    logits = torch.tensor([[1.0, -2.0, 4.0], [0.0, 0.0, 0.0]])
    assert output_range({"logits": logits, "loss": None, "classes": logits.argmax(1)}).tolist() == [6, 0]
    assert output_range([logits, torch.tensor([0.5, 0.25])]).tolist() == [6, 0]  # one score for each image
    with pytest.raises(ValueError, match=r"it returned torch\.int64"):
        output_range(logits.argmax(1))


def test_measured_moments_are_those_of_the_inputs_of_batch_norms(tiny_model):
    net = tiny_model.net
    layers = with_pixels(stored_statistics(net, tiny_model.image_shape), 3)
    images = torch.randn(6, 3, 8, 8)
    measured = measure(net, images, layers, groups=2)
    pixels, first, last = layers.per_layer(measured.moments)
    torch.testing.assert_close(pixels, moments(images, 2))
    torch.testing.assert_close(first, moments(net.conv1(images), 2))
    torch.testing.assert_close(last.mean(0), measured.last_moments.mean(0))
    for group, part in enumerate(images.split(3)):
        alone = measure(net, part, layers).moments
        torch.testing.assert_close(measured.moments[group], alone[0])
    torch.testing.assert_close(measured.output, net(images))


def test_the_distance_is_zero_for_the_training_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=1.0))
    images = torch.randn(64, 3, 6, 6)
    with torch.no_grad():
        net(images)
    layers = stored_statistics(net.eval(), (3, 6, 6))
    weights = channel_weights(layers.sizes, "mean", torch.device("cpu"))
    assert batch_norm_distance(measure(net, images, layers).moments[0], layers, weights, "std").item() < 1e-6
