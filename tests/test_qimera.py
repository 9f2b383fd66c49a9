"""Qimera's generator: mixtures of classes by count, the network's input, and images that are of their class."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dghlib.generators import qimera
from dghlib.generators.classes import find_head
from dghlib.generators.networks import QimeraNetwork
from dghlib.generators.qimera import mixtures_of_classes
from dghlib.models import FloatModel
from dghlib.running.batchnorm import stored_statistics, working_copy
from dghlib.seeds import stream

SMALL = qimera.Config(num_images=32, batch_size=16, steps=20)


def _task(model: FloatModel, config: qimera.Config) -> qimera._Task:
    net = working_copy(model.net, "cpu", model.image_shape)
    layers = stored_statistics(net, model.image_shape)
    return qimera._Task(net, layers, find_head(model, net, "test"), model.image_shape, config)


def test_mixtures_are_classes_or_superpositions():
    draws = torch.Generator().manual_seed(0)
    mixtures = mixtures_of_classes(2000, 10, 0.4, 2, draws)
    torch.testing.assert_close(mixtures.sum(1), torch.ones(2000))
    assert (mixtures >= 0).all()
    classes = (mixtures > 0).sum(1)
    # two classes coincide in a tenth of the mixtures
    assert (classes == 2).float().mean() == pytest.approx(0.4 * 0.9, abs=0.04)
    assert (classes <= 2).all()
    assert ((mixtures_of_classes(50, 10, 0.0, 2, draws) > 0).sum(1) == 1).all()
    assert ((mixtures_of_classes(50, 10, 1.0, 300, draws) > 0).sum(1) == 10).all()


def test_the_network_mixes_embeddings_and_the_scales_of_classes():
    network = QimeraNetwork((3, 8, 8), torch.eye(4))
    seen: list[torch.Tensor] = []
    network.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.body[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        network.scales.copy_(torch.tensor([1.0, 3.0, 0.0, 0.0])[:, None].expand(4, 128))
        network.shifts.copy_(torch.tensor([0.0, 2.0, 0.0, 0.0])[:, None].expand(4, 128))
        network(torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 8), torch.zeros(8, 4))
    # (1/2, 1/2, 0, 0) less its mean, over its deviation of 1/4
    torch.testing.assert_close(seen[0][0], torch.tensor([1.0, 1.0, -1.0, -1.0]), atol=1e-3, rtol=0)
    # all images are alike: of variance 0 but for the places in a map, so the mean is the shift, mixed
    assert seen[1].mean().item() == pytest.approx(1.0, abs=1e-3)
    assert seen[1].std().item() == pytest.approx(2.0, rel=0.05)  # the scale, mixed


def test_the_loss_by_hand(tiny_model, monkeypatch):
    task = _task(tiny_model, replace(SMALL, superposed=0.0))
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(task, "_made", lambda mixtures, draws: images + 0 * task.generator.embeddings.sum())
    draws = torch.Generator()
    draws.set_state(task.draws.get_state())
    labels = mixtures_of_classes(16, 5, 0.0, 2, draws).argmax(1)
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


def test_the_loss_falls_and_images_are_of_their_class(tiny_model):
    task = _task(tiny_model, replace(SMALL, superposed=0.0, batch_size=32))
    losses = [sum(task.step().values()) for _ in range(80)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    labels = mixtures_of_classes(32, 5, 0.0, 2, stream(0, "qimera", "images")).argmax(1)
    with torch.no_grad():
        predicted = tiny_model.net(task.images()).argmax(1)
    assert (predicted == labels).sum() >= 13  # of 32; by chance one in five


def test_steps_are_for_each_batch_of_images(tiny_model, monkeypatch):
    seen: dict[str, int] = {}
    monkeypatch.setattr(qimera, "run_tasks", lambda start, **settings: seen.update(steps=settings["steps"]))
    qimera.generate(tiny_model, replace(SMALL, num_images=40, batch_size=16, steps=7))
    assert seen["steps"] == 3 * 7


def test_embeddings_may_begin_with_the_classifier(tiny_model):
    task = _task(tiny_model, replace(SMALL, embeddings="classifier"))
    assert torch.equal(task.generator.embeddings, tiny_model.net.linear.weight)
    assert not torch.equal(_task(tiny_model, SMALL).generator.embeddings, tiny_model.net.linear.weight)


def test_presets_of_thousands_of_classes_run_with_few(tiny_model):
    config = replace(qimera.PRESETS["resnet50"], num_images=3, batch_size=2, steps=1)
    assert qimera.generate(tiny_model, config, progress=False).shape == (3, 3, 8, 8)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="superposed must be from 0 to 1, got nan"):
        qimera.Config(superposed=math.nan)
    with pytest.raises(ValueError, match="embeddings must be one of 'random', 'classifier', got 'zero'"):
        qimera.Config(embeddings="zero")  # type: ignore[arg-type]
