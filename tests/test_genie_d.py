"""GENIE-D: its network, its pixel loss, swing convolution, independent batches."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dghlib import models
from dghlib.generators import genie_d
from dghlib.generators.genie_d import pixel_distance, swing_strided_convolutions, swung
from dghlib.models import FloatModel
from dghlib.running.batchnorm import stored_statistics, working_copy
from dghlib.synthesis.networks import GenieNetwork, initialised

SMALL = genie_d.Config(num_images=16, batch_size=16, steps=30)


def _task(model: FloatModel, config: genie_d.Config, index: int = 0) -> genie_d._Task:
    net = working_copy(model.net, "cpu", model.image_shape)
    layers = stored_statistics(net, model.image_shape)
    return genie_d._Task(net, layers, model.image_shape, config, index, config.batch_size, torch.Generator())


def test_pixel_distance_by_hand():
    # a channel with mean 3 and deviation 1, one with mean 0 and deviation 3; then an image with the right statistics
    first = torch.tensor([[2.0, 4.0], [-3.0, 3.0]])
    second = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    images = torch.stack([first, second])[:, :, None, :]
    assert pixel_distance(images).item() == pytest.approx((9 + 4 + 0) / 2, rel=1e-4)


def test_the_loss_sums_means_over_channels_over_the_layers(tiny_model):
    task = _task(tiny_model, SMALL)
    sizes = task.layers.sizes
    assert torch.equal(task.weights, torch.cat([torch.full((size,), 1 / size) for size in sizes]))


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (3, 96, 96), (1, 48, 80), (3, 30, 17), (3, 224, 224)])
def test_the_network_makes_images_of_any_size_in_normalised_space(shape):
    network = initialised(lambda: GenieNetwork(shape, 256), 0, "test")
    with torch.no_grad():
        images = network(torch.randn(4, 256))
    assert images.shape == (4, *shape)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(shape[0]), atol=1e-2, rtol=0)


def test_the_network_at_224_has_the_papers_size():
    network = GenieNetwork((3, 224, 224), 256)
    linear = 256 * 128 * 56 * 56 + 128 * 56 * 56
    convolutions = (128 * 64 * 9 + 64) + (64 * 3 * 9 + 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == linear + convolutions + 2 * (128 + 64)


def test_swing_shifts_maps_by_up_to_a_pixel_and_keeps_their_shape():
    maps = torch.arange(30.0).view(1, 1, 5, 6)
    draws = torch.Generator().manual_seed(0)
    padded = nn.functional.pad(maps, (1, 1, 1, 1), mode="reflect")
    expected = {
        tuple(padded[0, 0, top : top + 5, left : left + 6].flatten().tolist()) for top in range(3) for left in range(3)
    }
    seen = {tuple(swung(maps, draws).flatten().tolist()) for _ in range(100)}
    assert seen == expected
    assert len(seen) == 9
    assert swung(maps, draws).shape == maps.shape


def test_a_single_row_is_not_shifted():
    maps = torch.randn(2, 3, 1, 7)
    assert torch.equal(swung(maps, torch.Generator()), maps)


def test_only_strided_convolutions_swing():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, stride=2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, stride=(1, 2))
    )
    swing_strided_convolutions(net, torch.Generator())
    assert [bool(module._forward_pre_hooks) for module in net] == [False, True, False, True]


def test_measured_moments_vary_with_the_swing(tiny_model):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4))
    model = replace(tiny_model, net=net.eval())
    images = torch.randn(2, 3, 8, 8)
    copy = working_copy(net, "cpu", model.image_shape)
    swing_strided_convolutions(copy, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert len({copy(images).sum().item() for _ in range(20)}) > 3
        assert net(images).sum() == net(images).sum()
    swinging, still = (replace(SMALL, steps=3, swing=swing) for swing in (True, False))
    results = [genie_d.generate(model, config, progress=False) for config in (swinging, still)]
    assert not torch.equal(*results)


def test_images_are_the_output_before_the_last_update(tiny_model):
    task = _task(tiny_model, SMALL)
    with torch.no_grad():
        before = task.generator(task.latents).clone()
    task.step()
    assert torch.equal(task.images(), before)


def test_latents_and_generator_are_trained_and_the_model_is_not(tiny_model):
    task = _task(tiny_model, SMALL)
    latents, weights = task.latents.detach().clone(), task.generator.linear.weight.detach().clone()
    task.step()
    # Adam's first step is the learning rate itself
    assert (task.latents - latents).abs().max().item() == pytest.approx(0.1, rel=1e-3)
    assert (task.generator.linear.weight - weights).abs().max().item() == pytest.approx(0.01, rel=1e-3)
    assert all(parameter.grad is None for parameter in task.net.parameters())


def test_learning_rates_fall_on_their_own_schedules(tiny_model):
    task = _task(tiny_model, replace(SMALL, batch_size=2, steps=genie_d.STEPS))
    task.latent_schedule.patience = 3
    task.latent_schedule.best = -1.0  # no loss is better than the first
    for _ in range(99):
        task.step()
    assert task.schedule.get_last_lr() == [0.01]
    task.step()
    assert task.schedule.get_last_lr() == [pytest.approx(0.01 * 0.95)]
    assert task.latent_schedule.get_last_lr() == [pytest.approx(1e-4)]


def test_every_batch_has_a_network_of_its_own(tiny_model):
    first, second = (_task(tiny_model, SMALL, index) for index in range(2))
    assert not torch.equal(first.generator.linear.weight, second.generator.linear.weight)
    assert not torch.equal(first.latents, second.latents)


def test_the_loss_falls():
    model = models.load("shapes_residual")
    task = _task(model, SMALL)
    losses = [sum(task.step().values()) for _ in range(SMALL.steps)]
    assert losses[-1] < losses[0] / 3


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="latent_size must be at least 1, got 0"):
        genie_d.Config(latent_size=0)
    with pytest.raises(ValueError, match="latent_learning_rate must be from 0 to inf, got -1"):
        genie_d.Config(latent_learning_rate=-1)
