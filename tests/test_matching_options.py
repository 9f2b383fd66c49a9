"""Options of the methods that match statistics: KW's divergence, DSG's slack and SynQ's filter, each by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from dghlib.generators import GENERATORS, dgh, genie_d
from dghlib.images import low_pass
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics, stored_statistics, variance_of, working_copy
from dghlib.storage.records import plain
from dghlib.synthesis.matching import (
    STD_EPSILON,
    Distance,
    batch_norm_distance,
    channel_weights,
    errors_of_noise,
    gaussian_divergence,
)
from dghlib.synthesis.options import MatchingOptions

TWO_LAYERS = StoredStatistics(
    names=("a", "b"), sizes=(2, 1), mean=torch.tensor([0.0, 1.0, 2.0]), variance=torch.tensor([1.0, 4.0, 9.0])
)
SUMS = channel_weights(TWO_LAYERS.sizes, "sum", torch.device("cpu"))
METHODS = ("zeroq", "intraq", "genie_d", "dgh")
OPTIONS: tuple[dict[str, Any], ...] = (
    {"statistics_distance": "gaussian"},
    {"statistics_slack": 0.9},
    {"low_pass": 2.0},
)


def _moments(mean: list[float], variance: list[float]) -> Tensor:
    first, spread = torch.tensor(mean), torch.tensor(variance)
    return torch.stack([first, spread + first.square()])


def _made(method: str, model: FloatModel, **settings: Any) -> Tensor:
    module = GENERATORS[method]
    config = module.Config(num_images=4, batch_size=2, steps=3, **settings)
    images: Tensor = module.generate(model, config, progress=False)
    return images


def test_the_gaussian_distance_is_the_divergence_of_the_stored_from_the_measured_distribution() -> None:
    measured = _moments([1, 1, -1], [2, 4, 25])
    stored = Normal(TWO_LAYERS.mean, TWO_LAYERS.variance.sqrt())
    expected = kl_divergence(stored, Normal(torch.tensor([1.0, 1, -1]), torch.tensor([2.0, 4, 25]).sqrt()))
    found = gaussian_divergence(stored.mean, stored.stddev, measured[0], variance_of(measured).sqrt())
    torch.testing.assert_close(found, expected)
    distance = batch_norm_distance(measured, TWO_LAYERS, SUMS, "std", distance="gaussian")
    torch.testing.assert_close(distance, expected.sum(), rtol=1e-4, atol=0)


def test_the_gaussian_distance_has_no_unit_and_compares_deviations(tiny_model: FloatModel) -> None:
    measured, units = _moments([1, 1, -1], [2, 4, 25]), TWO_LAYERS.units()
    options = MatchingOptions(statistics_distance="gaussian")
    absolute, relative = (
        options.distance_from(tiny_model.net, (3, 8, 8), TWO_LAYERS, SUMS, "variance", unit)(measured)
        for unit in (None, units)
    )
    torch.testing.assert_close(absolute, relative, rtol=1e-5, atol=0)
    expected = batch_norm_distance(measured, TWO_LAYERS, SUMS, "std", distance="gaussian")
    assert torch.equal(absolute, expected)


def test_a_constant_channel_has_a_finite_divergence() -> None:
    measured = _moments([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]).requires_grad_()
    distance = batch_norm_distance(measured, TWO_LAYERS, SUMS, "std", distance="gaussian")
    (gradient,) = torch.autograd.grad(distance, measured)
    assert distance.isfinite()
    assert gradient.isfinite().all()


SLACK = torch.tensor([[1.0, 1, 0.5], [0.5, 0.5, 2]])


@pytest.mark.parametrize("distance", ["squared", "gaussian"])
def test_errors_up_to_the_slack_are_free(distance: Distance) -> None:
    # means are wrong by 1 (the slack), -0.5 and 0.25; deviations by 0.25, -0.5 (the slack) and 1
    measured = _moments([1, 0.5, 2.25], [1.25**2, 1.5**2, 16]).requires_grad_()
    free = batch_norm_distance(measured, TWO_LAYERS, SUMS, "std", distance=distance, slack=SLACK + STD_EPSILON)
    assert free.item() == 0
    (gradient,) = torch.autograd.grad(free, measured)
    assert not gradient.any()


def test_the_loss_beyond_the_slack_is_that_of_the_excess() -> None:
    measured = _moments([3, 1, 2], [1, 1, 36])
    # the first mean is wrong by 3, 2 beyond its slack; deviations: by -1, 0.5 beyond it, and by 3, 1 beyond it
    squared, gaussian = (
        batch_norm_distance(measured, TWO_LAYERS, SUMS, "std", distance=distance, slack=SLACK)
        for distance in ("squared", "gaussian")
    )
    assert squared.item() == pytest.approx(2**2 + 0.5**2 + 1, rel=1e-4)
    stored = Normal(TWO_LAYERS.mean, torch.tensor([1.0, 2, 3]))
    expected = kl_divergence(stored, Normal(torch.tensor([2.0, 1, 2]), torch.tensor([1.0, 1.5, 4])))
    torch.testing.assert_close(gaussian, expected.sum(), rtol=1e-4, atol=0)


def test_the_slack_is_a_quantile_of_the_errors_in_each_layer() -> None:
    measured = _moments([2, 2, -2], [1, 16, 9])
    # layer a: errors of means 2 and 1, of deviations 0 and 2; layer b: 4 and 0
    found = errors_of_noise(measured, TWO_LAYERS, "std", 0.75)
    torch.testing.assert_close(found, torch.tensor([[1.75, 1.75, 4], [1.5, 1.5, 0]]), rtol=1e-4, atol=1e-4)
    assert (errors_of_noise(measured, TWO_LAYERS, "variance", 1.0)[1] - torch.tensor([12.0, 12, 0])).abs().max() < 1e-5


def test_noise_itself_is_within_a_slack_of_1(tiny_model: FloatModel) -> None:
    layers = stored_statistics(tiny_model.net, tiny_model.image_shape)
    weights = channel_weights(layers.sizes, "sum", layers.mean.device)
    exact = torch.stack([layers.mean, layers.variance + layers.mean.square()])

    def distance(moments: Tensor, **settings: Any) -> float:
        of = MatchingOptions(**settings).distance_from(
            tiny_model.net, tiny_model.image_shape, layers, weights, "std", layers.units()
        )
        return of(moments).item()

    wrong = exact + 1.0
    tight, wide, whole, other = (
        distance(wrong, **settings)
        for settings in (
            {},
            {"statistics_slack": 0.5},
            {"statistics_slack": 1.0},
            {"statistics_slack": 0.5, "seed": 1},
        )
    )
    assert tight > wide > whole
    assert wide == distance(wrong, statistics_slack=0.5)
    assert wide != other, "the noise must depend on the seed"


def test_genies_slack_does_not_depend_on_earlier_batches() -> None:
    strided = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)).eval()
    net, shape, shifts = working_copy(strided, "cpu", (3, 8, 8)), (3, 8, 8), torch.Generator()
    genie_d.swing_strided_convolutions(net, shifts)
    layers = stored_statistics(net, shape)
    config = genie_d.Config(num_images=4, batch_size=2, statistics_slack=0.9)
    distances = []
    for seed in (1, 2):
        shifts.manual_seed(seed)
        task = genie_d._Task(net, layers, shape, config, 1, 2, shifts)
        distances.append(task.distance(torch.ones(2, len(layers.mean)) * 3).item())
    assert distances[0] == distances[1]


def test_the_filter_keeps_constant_images_and_the_range_of_pixels() -> None:
    options = MatchingOptions(low_pass=8.0)
    constant = torch.full((1, 3, 32, 32), 0.7)
    torch.testing.assert_close(options.filtered(constant), constant)
    edge = torch.zeros(1, 1, 32, 32)
    edge[..., 16:] = 1.0
    assert low_pass(edge, 8.0).max() > 1.001, "otherwise the test of the range says nothing"
    filtered = options.filtered(edge)
    assert filtered.min() >= 0
    assert filtered.max() <= 1
    assert filtered[0, 0, 0, 16] < 0.99, "the edge must be smoother"


@pytest.mark.parametrize("method", METHODS)
def test_options_change_the_images_of_every_method(method: str, tiny_model: FloatModel) -> None:
    usual = _made(method, tiny_model)
    for option in OPTIONS:
        changed = _made(method, tiny_model, **option)
        assert changed.isfinite().all()
        assert not torch.equal(changed, usual), option
        assert torch.equal(changed, _made(method, tiny_model, **option)), option


@pytest.mark.parametrize("method", METHODS)
def test_the_filter_is_the_last_step(method: str, tiny_model: FloatModel) -> None:
    settings: dict[str, Any] = {"clip": False} if method == "dgh" else {}
    usual = _made(method, tiny_model, **settings)
    expected = MatchingOptions(low_pass=2.0).filtered(usual)
    torch.testing.assert_close(_made(method, tiny_model, low_pass=2.0, **settings), expected)


def test_dgh_clips_after_the_filter(tiny_model: FloatModel) -> None:
    config = dgh.Config(num_images=4, batch_size=2, steps=1, low_pass=2.0)
    images = 4 * torch.randn(2, 3, 10, 10)
    free, clipped = (
        dgh._Run(tiny_model, replace(config, clip=clip), "cpu")._finished(images) for clip in (False, True)
    )
    low, high = (
        torch.tensor([(edge - m) / s for m, s in zip(tiny_model.mean, tiny_model.std, strict=True)]).view(1, -1, 1, 1)
        for edge in (0.0, 1.0)
    )
    assert not torch.equal(free, clipped)
    torch.testing.assert_close(clipped, free.clamp(low, high))


@pytest.mark.parametrize("method", METHODS)
def test_records_from_before_the_options_are_found(method: str) -> None:
    config = GENERATORS[method].Config
    assert not {"statistics_distance", "statistics_slack", "low_pass"} & plain(config()).keys()
    assert plain(config(low_pass=8.0))["low_pass"] == 8.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"statistics_distance": "absolute"},
            "must be one of 'squared', 'gaussian', got 'absolute'",
        ),
        ({"statistics_slack": 1.5}, "statistics_slack must be from 0 to 1, got 1.5"),
        ({"low_pass": -1.0}, r"low_pass, unless it is 0, must be from 0.1 to inf, got -1.0"),
        ({"low_pass": float("nan")}, "low_pass must be finite, got nan"),
        ({"low_pass": "wide"}, "low_pass must be a number, got 'wide'"),
    ],
)
def test_impossible_options_are_refused(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GENERATORS[method].Config(**settings)
