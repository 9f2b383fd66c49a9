"""Qimera's generator: mixtures of classes by count, the network's input, and the class of the images."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dghlib.generators import qimera
from dghlib.models import FloatModel
from dghlib.running.batchnorm import stored_statistics, working_copy
from dghlib.synthesis.class_maker import random_mixtures
from dghlib.synthesis.classes import find_head
from dghlib.synthesis.networks import QimeraNetwork, mixtures_of

SMALL = qimera.Config(num_images=32, batch_size=16, steps=20)


def _task(model: FloatModel, config: qimera.Config) -> qimera._Task:
    net = working_copy(model.net, "cpu", model.image_shape)
    layers = stored_statistics(net, model.image_shape)
    return qimera._Task(net, layers, find_head(model, net, "test"), model.image_shape, config)


def test_mixtures_are_classes_or_superpositions():
    draws = torch.Generator().manual_seed(0)
    classes, shares = random_mixtures(2000, 10, 2, draws)
    mixtures = mixtures_of(classes, shares, 10)
    torch.testing.assert_close(mixtures.sum(1), torch.ones(2000))
    # 2 classes are equal in 1/10 of the mixtures
    assert ((mixtures > 0).sum(1) == 2).float().mean() == pytest.approx(0.9, abs=0.03)
    larger = mixtures[classes[:, 0] != classes[:, 1]].max(1).values  # sigmoids of |N(0, 2)|
    assert larger.mean().item() == pytest.approx(0.73, abs=0.02)
    alone, whole = random_mixtures(50, 10, 1, draws)
    assert (whole == 1).all()
    assert torch.equal(mixtures_of(alone, whole, 10).argmax(1), alone[:, 0])


def test_noise_is_added_to_each_embedding_and_mixed_with_it():
    network = QimeraNetwork((3, 8, 8), torch.eye(4))
    seen: list[torch.Tensor] = []
    network.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    classes, shares = torch.tensor([[0, 1]] * 8), torch.tensor([[0.25, 0.75]] * 8)
    noise = torch.zeros(8, 2, 4)
    noise[:, 1, 2] = 1.0
    network(classes, shares, noise)
    # (1, 0, 0, 0) and (0, 1, 1, 0), each less its mean and over its deviation, then mixed
    first = (torch.tensor([1.0, 0.0, 0.0, 0.0]) - 1 / 4) / math.sqrt(3 / 16)
    second = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    torch.testing.assert_close(seen[0][0], 0.25 * first + 0.75 * second, atol=1e-3, rtol=0)


def test_a_mixture_of_many_classes_hardly_depends_on_the_noise():
    embeddings = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    network = QimeraNetwork((3, 8, 8), embeddings)
    seen: list[torch.Tensor] = []
    network.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    draws = torch.Generator().manual_seed(1)
    classes, shares = random_mixtures(16, 500, 500, draws)
    for _ in range(2):
        network(classes, shares, torch.randn(16, 500, 64, generator=draws))
    # Of embeddings, drawn with replacement, e + 1 parts are left of a mixture, e of the noise beside them.
    expected = (math.e + 1) / (2 * math.e + 1)
    assert torch.cosine_similarity(seen[0], seen[1]).mean().item() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("conditional", [True, False])
def test_scales_and_shifts_of_classes_are_mixed(conditional):
    network = QimeraNetwork((3, 8, 8), torch.eye(4), conditional=conditional)
    rows = torch.tensor([1.0, 3.0, 0.0, 0.0]) if conditional else torch.tensor([2.0])
    assert network.norm.scales.shape == (len(rows), 128)
    every = {
        name: values.shape[0] for name, values in network.state_dict().items() if name.endswith(("scales", "shifts"))
    }
    assert list(every.values()) == [len(rows)] * 6
    seen: list[torch.Tensor] = []
    network.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        network.norm.scales.copy_(rows[:, None].expand(-1, 128))
        network.norm.shifts.copy_(rows[:, None].expand(-1, 128))
        network(torch.tensor([[0, 1]] * 8), torch.full((8, 2), 0.5), torch.zeros(8, 2, 4))
    # all images are equal: their variance is 0 except over a map, so the mean is the shift
    assert seen[0].mean().item() == pytest.approx(2.0, abs=1e-3)
    assert seen[0].std().item() == pytest.approx(2.0, rel=0.05)


def test_maps_start_at_a_quarter_of_the_image_rounded_up():
    network = QimeraNetwork((3, 30, 17), torch.eye(4))
    assert network.seed_shape == (128, 8, 5)
    assert network(torch.tensor([[0, 1]] * 2), torch.full((2, 2), 0.5), torch.zeros(2, 2, 4)).shape == (2, 3, 30, 17)


def test_the_loss_by_hand(tiny_model, monkeypatch):
    task = _task(tiny_model, replace(SMALL, superposed=0.0))
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 5
    targets = nn.functional.one_hot(labels, 5).float()
    made = images + 0 * task.maker.generator.embeddings.sum()
    monkeypatch.setattr(task.maker, "made", lambda count, superposed, draws: (made, targets))
    terms = task.step()
    net, bn = tiny_model.net, tiny_model.net.bn1
    with torch.no_grad():
        assert terms["class"] == pytest.approx(nn.functional.cross_entropy(net(images), labels).item(), rel=1e-5)
        y = net.conv1(images)
        first = (y.mean((0, 2, 3)) - bn.running_mean).square().mean()
        first += (y.var((0, 2, 3), correction=0) - bn.running_var).square().mean()
        z = net.conv2(net.relu(bn(y)))
        second = (z.mean((0, 2, 3)) - net.bn2.running_mean).square().mean()
        second += (z.var((0, 2, 3), correction=0) - net.bn2.running_var).square().mean()
    assert terms["BNS"] == pytest.approx(0.1 * (first + second).item() / 2, rel=1e-4)


def test_the_loss_falls_and_images_are_classified_as_their_class(tiny_model):
    task = _task(tiny_model, replace(SMALL, superposed=0.0, batch_size=32, steps=400))
    losses = [sum(task.step().values()) for _ in range(80)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    with torch.no_grad():
        images, targets = task.maker.made(64, False, torch.Generator().manual_seed(0))
        predicted = tiny_model.net(images).argmax(1)
    assert (predicted == targets.argmax(1)).sum() >= 26  # of 64; by chance 1 in 5


def test_steps_are_for_each_batch_of_images(tiny_model, monkeypatch):
    seen: dict[str, int] = {}
    monkeypatch.setattr(qimera, "run_tasks", lambda start, **settings: seen.update(steps=settings["steps"]))
    qimera.generate(tiny_model, replace(SMALL, num_images=40, batch_size=16, steps=7))
    assert seen["steps"] == 3 * 7


def test_the_rate_falls_after_each_quarter(tiny_model):
    task = _task(tiny_model, replace(SMALL, num_images=32, batch_size=16, steps=4))
    rates = []
    for _ in range(8):
        rates.append(task.maker.optimizer.param_groups[0]["lr"])
        task.step()
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


def test_training_batches_are_superposed_by_chance_and_images_by_share(tiny_model, monkeypatch):
    task = _task(tiny_model, replace(SMALL, num_images=30, superposed=0.4))
    asked: list[tuple[int, bool]] = []
    made = task.maker.made

    def noted(count: int, superposed: bool, draws: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append((count, superposed))
        return made(count, superposed, draws)

    monkeypatch.setattr(task.maker, "made", noted)
    assert task.images().shape == (30, 3, 8, 8)
    assert asked == [(12, True), (16, False), (2, False)]
    asked.clear()
    for _ in range(12):
        task.step()
    assert {count for count, _ in asked} == {16}
    assert {superposed for _, superposed in asked} == {True, False}


def test_embeddings_can_start_from_the_classifier(tiny_model):
    task = _task(tiny_model, replace(SMALL, embeddings="classifier"))
    assert torch.equal(task.maker.generator.embeddings, tiny_model.net.linear.weight)
    assert not torch.equal(_task(tiny_model, SMALL).maker.generator.embeddings, tiny_model.net.linear.weight)


def test_presets_for_thousands_of_classes_run_with_few(tiny_model):
    config = replace(qimera.PRESETS["imagenet_resnet50"], num_images=3, batch_size=2, steps=1)
    assert qimera.generate(tiny_model, config, progress=False).shape == (3, 3, 8, 8)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="superposed must be finite, got nan"):
        qimera.Config(superposed=math.nan)
    with pytest.raises(ValueError, match="embeddings must be one of 'random', 'classifier', got 'zero'"):
        qimera.Config(embeddings="zero")  # type: ignore[arg-type]
