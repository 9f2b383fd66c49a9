"""DeepInversion: each term of its loss by hand, its schedule, its classes, and competition with a student."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_model
from torch import nn

from dghlib import models
from dghlib.generators import deep_inversion
from dghlib.generators.deep_inversion import jensen_shannon, total_variation, warm_up_and_cosine
from dghlib.models import FloatModel
from dghlib.running.batchnorm import stored_statistics, working_copy
from dghlib.synthesis.classes import labels_of

SMALL = deep_inversion.Config(num_images=24, batch_size=24, steps=60)


def _loss(model: FloatModel, config: deep_inversion.Config, rival: nn.Module | None = None) -> deep_inversion._Loss:
    net = working_copy(model.net, "cpu", model.image_shape)
    labels = torch.zeros(config.batch_size, dtype=torch.long)
    layers = stored_statistics(net, model.image_shape)
    return deep_inversion._Loss(net, layers, config, labels, rival, torch.Generator().manual_seed(0))


def test_total_variation_by_hand():
    images = torch.tensor([[[[0.0, 3.0], [4.0, 1.0]]], [[[0.0, 0.0], [0.0, 4.0]]]])
    right = math.sqrt(9 + 9 + 0 + 16)
    below = math.sqrt(16 + 4 + 0 + 16)
    diagonals = math.sqrt(1 + 16) + math.sqrt(1 + 0)
    assert total_variation(images).item() == pytest.approx(right + below + diagonals)


def test_jensen_shannon_by_hand():
    equal = torch.tensor([[1.0, 2.0, 3.0]])
    assert jensen_shannon(equal, equal).item() == pytest.approx(0, abs=1e-6)
    # at temperature 3, logits 3 log(p) give probabilities p; those of opposite certainty are kept to 0.99 and 0.01
    one, other = (3 * torch.tensor([row]).log() for row in ([1 - 1e-6, 1e-6], [1e-6, 1 - 1e-6]))
    expected = 0.99 * math.log(0.99 / 0.5) + 0.01 * math.log(0.01 / 0.5)
    assert jensen_shannon(one, other).item() == pytest.approx(expected, rel=1e-4)
    first, second = (3 * torch.tensor([row]).log() for row in ([0.8, 0.2], [0.4, 0.6]))
    middle = (0.6, 0.4)
    expected = 0.5 * (0.8 * math.log(0.8 / middle[0]) + 0.2 * math.log(0.2 / middle[1]))
    expected += 0.5 * (0.4 * math.log(0.4 / middle[0]) + 0.6 * math.log(0.6 / middle[1]))
    assert jensen_shannon(first, second).item() == pytest.approx(expected, rel=1e-5)
    turned = 0.5 * (0.6 * math.log(0.6 / 0.8) + 0.4 * math.log(0.4 / 0.2))
    turned += 0.5 * (0.6 * math.log(0.6 / 0.4) + 0.4 * math.log(0.4 / 0.6))
    assert jensen_shannon(first, second, "of middle").item() == pytest.approx(turned, rel=1e-5)


def test_the_terms_are_weighted_and_the_first_batch_norm_more(tiny_model):
    config = replace(SMALL, batch_size=2, jitter=0, flip=False)
    loss = _loss(tiny_model, config)
    assert loss.layer_weights.tolist() == pytest.approx([0.1, 0.01])
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0, 0, 0] = 3.0
    terms = loss(images)
    assert set(terms) == {"class", "BNS", "TV", "size"}
    assert terms["size"].item() == pytest.approx(1e-5 * 3 / 2)
    assert terms["TV"].item() == pytest.approx(1e-4 * 3 * 3)  # neighbours on the right, below and on one diagonal
    expected = nn.functional.cross_entropy(tiny_model.net(images), torch.zeros(2, dtype=torch.long))
    assert terms["class"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [warm_up_and_cosine(step, 2000) for step in range(2000)]
    assert rates[0] == pytest.approx(1 / 101)
    assert rates[:100] == sorted(rates[:100])
    assert max(rates) == rates[100] == 1
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] < 1e-5
    assert warm_up_and_cosine(0, 1) == pytest.approx(1 / 1.05)


def test_jitter_rolls_images_up_to_its_limit_and_flips_half_of_them(tiny_model):
    images = torch.zeros(1, 3, 8, 8)
    images[0, 0, 4, 4] = 1
    loss = _loss(tiny_model, replace(SMALL, jitter=2, flip=False))
    places = {tuple(loss._jittered(images)[0, 0].nonzero()[0].tolist()) for _ in range(400)}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    still = _loss(tiny_model, replace(SMALL, jitter=0))
    columns = [int(still._jittered(images)[0, 0].nonzero()[0, 1]) for _ in range(400)]
    assert set(columns) == {4, 3}  # mirrored, 4 becomes 7 - 4
    assert columns.count(3) == pytest.approx(200, abs=50)


def test_images_are_classified_as_their_class_and_can_be_pixels():
    model = models.load("shapes_residual")
    images = deep_inversion.generate(model, SMALL, progress=False)
    labels = labels_of("deep_inversion", SMALL, 48)
    with torch.no_grad():
        correct = (model.net(images).argmax(1) == labels).float().mean()
    assert correct >= 0.9
    pixels = images * model.std[0] + model.mean[0]
    assert pixels.min() >= -1e-5
    assert pixels.max() <= 1 + 1e-5


@pytest.fixture
def student() -> FloatModel:
    """Return a network that classifies differently."""
    return replace(make_tiny_model(seed=1), name="student")


def test_competition_increases_the_disagreement_of_the_networks(tiny_model, student):
    def disagreement(weight: float) -> float:
        config = replace(SMALL, competition_weight=weight)
        images = deep_inversion.generate(tiny_model, config, progress=False, student=student if weight else None)
        with torch.no_grad():
            return jensen_shannon(tiny_model.net(images), student.net(images)).item()

    assert disagreement(20.0) > 1.2 * disagreement(0.0)


def test_an_unsuitable_student_is_refused(tiny_model, student):
    adi = replace(deep_inversion.PRESETS["adi"], num_images=2, steps=1)
    with pytest.raises(ValueError, match=r"competition_weight is 0\.2 and there is none"):
        deep_inversion.generate(tiny_model, adi, progress=False)
    with pytest.raises(ValueError, match="competition_weight is 0 and there is student"):
        deep_inversion.generate(tiny_model, SMALL, progress=False, student=student)
    brighter = replace(student, mean=(0.4, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"the student student has mean \(0\.4"):
        deep_inversion.generate(tiny_model, adi, progress=False, student=brighter)
    student.net.linear = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="tells 4 classes apart, tiny 5"):
        deep_inversion.generate(tiny_model, adi, progress=False, student=student)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="jitter must be at least 0, got -1"):
        deep_inversion.Config(jitter=-1)
    with pytest.raises(ValueError, match="size_weight must be from 0 to inf, got -1"):
        deep_inversion.Config(size_weight=-1)
    with pytest.raises(ValueError, match="divergence must be one of 'from middle', 'of middle', got 'middle'"):
        deep_inversion.Config(divergence="middle")
