"""IntraQ: its 3 parts by hand, and their effects."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dghlib import models
from dghlib.generators import intraq
from dghlib.generators.intraq import ClassCentres, marginal_distance, soft_inception_loss, soft_targets
from dghlib.models import FloatModel
from dghlib.running.batchnorm import stored_statistics, working_copy
from dghlib.synthesis.classes import Head, find_head, labels_of
from dghlib.synthesis.matching import batch_norm_distance, channel_weights, measure

# All three parts off.
SMALL = intraq.Config(num_images=32, batch_size=8, steps=40, soft_target=1.0, nearest=0.0, farthest=2.0, crop_area=1.0)


def test_soft_inception_loss_by_hand():
    logits = torch.tensor([[1.0, 1.0], [1.0, 3.0]]).log()  # the labels' probabilities: 1/2 and 3/4
    loss = soft_inception_loss(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.7]))
    assert loss.item() == pytest.approx((0.5**2 + 0.05**2) / 2)


def test_marginal_distance_by_hand():
    centres = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [5.0, 5.0]])
    known = torch.tensor([True, True, True, False])
    # distances 0, 1 and 2: the first is 0.25 too near, the last 0.5 too far, the fourth has no centre yet
    loss = marginal_distance(features, centres, known, nearest=0.25, farthest=1.5)
    assert loss.item() == pytest.approx((0.25 + 0 + 0.5) / 3, rel=1e-5)
    assert marginal_distance(features, centres, ~known, 0.25, 1.5).isfinite()
    assert marginal_distance(features, centres, known & False, 0.25, 1.5) == 0


def test_half_of_the_targets_are_one_and_the_others_vary():
    targets = soft_targets(4000, 0.6, torch.Generator().manual_seed(0))
    soft = targets[targets < 1]
    assert len(soft) == pytest.approx(2000, abs=150)
    assert soft.min() >= 0.6
    assert soft.mean() == pytest.approx(0.8, abs=0.02)
    assert (soft_targets(50, 1.0, torch.Generator()) == 1).all()


def test_class_centres_are_means_of_features_over_all_batches():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False))
    centres = ClassCentres(Head(layer="1", width=2, num_classes=3), torch.device("cpu"))
    centres.add(net, torch.tensor([[1.0, 0.0], [0.0, 4.0]]).view(2, 1, 1, 2), torch.tensor([0, 2]))
    centres.add(net, torch.tensor([[3.0, 2.0]]).view(1, 1, 1, 2), torch.tensor([0]))
    of_labels, known = centres.of(torch.tensor([2, 0, 1]))
    assert of_labels.tolist() == [[0, 4], [2, 1], [0, 0]]
    assert known.tolist() == [True, True, False]


def test_the_loss_falls_and_statistics_are_met(tiny_model):
    def distance(images: torch.Tensor) -> float:
        layers = stored_statistics(tiny_model.net, tiny_model.image_shape)
        weights = channel_weights(layers.sizes, "mean", torch.device("cpu"))
        with torch.no_grad():
            measured = measure(tiny_model.net, images, layers).moments
            return batch_norm_distance(measured, layers, weights, "variance").item()

    config = replace(SMALL, num_images=16, batch_size=16, steps=80)
    start = distance(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert distance(intraq.generate(tiny_model, config, progress=False)) < start / 4


def _distances_from_centres(model: FloatModel, config: intraq.Config) -> torch.Tensor:
    """Return the cosine distances of the images of the last batch from the centres of the batches before."""
    images = intraq.generate(model, config, progress=False)
    head = find_head(model, model.net, "test")
    labels = labels_of("intraq", config, head.num_classes)
    earlier = config.num_images - config.batch_size
    centres, last = ClassCentres(head, torch.device("cpu")), ClassCentres(head, torch.device("cpu"))
    centres.add(model.net, images[:earlier], labels[:earlier])
    distances = []
    for image, label in zip(images[earlier:], labels[earlier:], strict=True):
        last.totals.zero_()
        last.add(model.net, image[None], label[None])
        centre, known = centres.of(label[None])
        if known:
            distances.append(1 - torch.cosine_similarity(last.totals[label][None], centre))
    return torch.cat(distances)


def test_mdc_widens_the_spread_of_images_in_feature_space(tiny_model):
    config = replace(SMALL, num_images=64, batch_size=32, steps=60)
    free = _distances_from_centres(tiny_model, config)
    spread = _distances_from_centres(tiny_model, replace(config, nearest=0.3, farthest=1.2))
    assert len(free) > 10
    assert free.mean() < 0.05
    assert spread.mean() == pytest.approx(0.3, abs=0.1)


def test_the_upper_bound_limits_distances_from_class_centres(tiny_model):
    free = _distances_from_centres(tiny_model, SMALL)
    held = _distances_from_centres(tiny_model, replace(SMALL, farthest=0.01))
    assert held.mean() < 0.8 * free.mean()


def test_images_reach_the_wanted_probability_of_their_class():
    residual = models.load("shapes_residual")

    def probabilities(soft_target: float) -> torch.Tensor:
        config = replace(SMALL, num_images=48, batch_size=48, steps=80, soft_target=soft_target)
        images = intraq.generate(residual, config, progress=False)
        with torch.no_grad():
            probability = residual.net(images).softmax(1)
        return probability.gather(1, labels_of("intraq", config, probability.shape[1])[:, None])

    hard, soft = probabilities(1.0).mean(), probabilities(0.0).mean()
    assert hard > 0.2  # by chance 1/48
    assert soft < 0.9 * hard


def _loss(model: FloatModel, config: intraq.Config) -> intraq._Loss:
    net = working_copy(model.net, "cpu", model.image_shape)
    layers, head = stored_statistics(net, model.image_shape), find_head(model, net, "test")
    labels, draws = torch.zeros(config.batch_size, dtype=torch.long), torch.Generator().manual_seed(0)
    return intraq._Loss(net, model.image_shape, layers, config, labels, ClassCentres(head, torch.device("cpu")), draws)


def test_statistics_are_compared_as_means_of_means_and_variances(tiny_model, monkeypatch):
    loss, images = _loss(tiny_model, SMALL), torch.randn(8, 3, 8, 8)
    monkeypatch.setattr(loss, "_locally_reinforced", lambda images: images)
    net = tiny_model.net
    with torch.no_grad():
        first = net.conv1(images)
        maps = {net.bn1: first, net.bn2: net.conv2(net.relu(net.bn1(first)))}
        errors = [
            (y.mean((0, 2, 3)) - bn.running_mean).square() + (y.var((0, 2, 3), correction=0) - bn.running_var).square()
            for bn, y in maps.items()
        ]
        expected = torch.stack([error.mean() for error in errors]).mean()
        torch.testing.assert_close(loss(images)["BNS"], expected)


def test_half_of_the_passes_use_crops_of_all_images(tiny_model):
    loss = _loss(tiny_model, replace(SMALL, crop_area=0.3))
    images = torch.randn(1, 3, 8, 8).expand(8, -1, -1, -1)
    shown = [loss._locally_reinforced(images) for _ in range(200)]
    cropped = [batch for batch in shown if batch is not images]
    assert len(cropped) == pytest.approx(100, abs=30)
    assert all(len(batch.unique(dim=0)) > 4 for batch in cropped)  # each image has its own window


def test_crops_are_mirrored_and_turned_as_set(tiny_model):
    images = torch.randn(1, 3, 8, 8).expand(8, -1, -1, -1)
    base, cropped = replace(SMALL, crop_area=1.0), {}
    plain = replace(base, flip=False)
    for name, config in {"plain": plain, "turned": replace(plain, rotation=30.0), "both": base}.items():
        loss = _loss(tiny_model, config)
        cropped[name] = next(batch for batch in map(loss._locally_reinforced, [images] * 50) if batch is not images)
    torch.testing.assert_close(cropped["plain"], images)  # a crop of the whole image
    assert len(cropped["both"].unique(dim=0)) == 2
    assert len(cropped["turned"].unique(dim=0)) == 8


def test_crops_turn_to_both_sides(tiny_model, monkeypatch):
    turns: list[torch.Tensor] = []
    monkeypatch.setattr(intraq, "rotate", lambda crops, degrees: (crops, turns.append(degrees))[0])  # type: ignore[func-returns-value]
    loss = _loss(tiny_model, replace(SMALL, rotation=30.0))
    for _ in range(100):
        loss._locally_reinforced(torch.randn(8, 3, 8, 8))
    degrees = torch.cat(turns)
    assert degrees.abs().max() <= 30
    assert degrees.min() < -25
    assert degrees.max() > 25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotation": 200.0}, "rotation must be from 0 to 180, got 200"),
        ({"crop_area": 0}, "crop_area must be from 0.01 to 1, got 0"),
        ({"soft_target": 1.5}, "soft_target must be from 0 to 1, got 1.5"),
        ({"nearest": 0.9}, "nearest must be from 0 to 0.8, got 0.9"),
        ({"farthest": 3}, "farthest must be from 0 to 2, got 3"),
        ({"learning_rate": -1}, "learning_rate must be from 0 to inf, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intraq.Config(**settings)
    name = next(iter(settings))
    with pytest.raises(TypeError, match=f"{name} must be a number, got 'x' of type str"):
        replace(SMALL, **{name: "x"})  # type: ignore[arg-type]


def test_features_are_the_inputs_of_the_last_linear_layer(tiny_model):
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(6, 5), nn.Linear(3, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x.mean((2, 3))).relu())

    model = replace(tiny_model, net=Several().eval())
    assert find_head(model, model.net, "test") == Head(layer="last", width=6, num_classes=5)
