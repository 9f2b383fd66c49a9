"""DGH: its loss falls, its parts have their effects, scopes share banks, and memory stays small."""

import copy
import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from dghlib.generators import dgh, noise
from dghlib.models import FloatModel
from dghlib.running.batchnorm import stored_statistics
from dghlib.storage import large_sets
from dghlib.synthesis.matching import batch_norm_distance, channel_weights, measure, output_range

SMALL = dgh.Config(num_images=24, batch_size=8, steps=120)


def _distance(model: FloatModel, images: torch.Tensor) -> float:
    """Return the distance of the whole set's statistics, as means over channels and layers."""
    layers = stored_statistics(model.net, model.image_shape)
    weights = channel_weights(layers.sizes, "mean", torch.device("cpu"))
    with torch.no_grad():
        return batch_norm_distance(measure(model.net, images, layers).moments[0], layers, weights, "std").item()


@pytest.mark.parametrize("preset", dgh.PRESETS)
def test_images_match_the_statistics_far_better_than_noise(preset, tiny_model):
    config = replace(dgh.PRESETS[preset], num_images=24, batch_size=8, steps=120)
    images = dgh.generate(tiny_model, config, progress=False)
    start = _distance(tiny_model, noise.generate(tiny_model, noise.Config(num_images=24)))
    assert _distance(tiny_model, images) < start / 5


def _scaled(model: FloatModel, factor: float) -> FloatModel:
    """Return a network with the same outputs, whose first layer and batch norm have another unit."""
    net = copy.deepcopy(model.net)
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    layer = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        layer.weight *= factor
        norm.running_mean *= factor
        norm.running_var *= factor**2
    norm.eps *= factor**2
    return replace(model, net=net)


@pytest.mark.parametrize("relative", [True, False])
def test_relative_statistics_do_not_depend_on_the_scale_of_a_layer(relative, tiny_model):
    config = replace(SMALL, steps=5, relative=relative)
    # A power of two, so that all values are scaled without rounding.
    made, other = (dgh.generate(model, config, progress=False) for model in (tiny_model, _scaled(tiny_model, 16)))
    assert torch.equal(made, other) is relative


def _with_and_without_compiling(model: FloatModel) -> tuple[torch.Tensor, ...]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = replace(SMALL, steps=2)
    return tuple(dgh.generate(model, config, progress=False, compiled=compiled) for compiled in (True, False))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own code ignores it
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="compiling needs a C++ compiler")
def test_a_compiled_network_makes_the_same_images(tiny_model):
    compiled, plain = _with_and_without_compiling(tiny_model)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)
    found = torch._dynamo.utils.counters
    assert found["stats"]["unique_graphs"] == 1
    assert not found["graph_break"]


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_without_a_compiler_the_network_is_not_compiled(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    compiled, plain = _with_and_without_compiling(tiny_model)
    assert torch.equal(compiled, plain)
    assert "no-such-compiler" in caplog.text


def test_output_stretching_widens_the_range_of_the_outputs(tiny_model):
    shares = [0.0, SMALL.output_share, 1.0]
    sets = [dgh.generate(tiny_model, replace(SMALL, output_share=share), progress=False) for share in shares]
    fixed = replace(SMALL, output_share=None, output_weight=0.1)
    sets.append(dgh.generate(tiny_model, fixed, progress=False))
    with torch.no_grad():
        ranges = [output_range(tiny_model.net(images)).mean().item() for images in sets]
    assert ranges == sorted(ranges)
    assert ranges[-1] > 1.2 * ranges[0]


@pytest.mark.parametrize("unit", [0.01, 1000.0])
def test_images_do_not_depend_on_the_unit_of_the_logits(unit, tiny_model):
    """A fixed weight has another effect on each network; a share of the gradient has the same on all."""
    config = replace(SMALL, steps=16)
    images = dgh.generate(tiny_model, config, progress=False)
    with torch.no_grad():
        tiny_model.net.linear.weight *= unit
        tiny_model.net.linear.bias *= unit
    torch.testing.assert_close(dgh.generate(tiny_model, config, progress=False), images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("step", [0, 8, 15])
def test_the_matching_loss_falls_with_a_reward_of_any_share(step, tiny_model):
    """The sum of both gradients has a positive product with the gradient of the matching loss."""
    run = dgh._Run(tiny_model, replace(SMALL, steps=16, output_share=1.0), "cpu")
    run.make_room()
    run.step = run.weighed_every * (step // run.weighed_every)
    batch = torch.randn(8, 3, 8, 8, requires_grad=True)
    bns, odsl = batch.square().mean(), -1e6 * batch.square().sum().sqrt()  # opposite gradients
    gradient, weight = run._gradient(bns, odsl, batch)
    (matching,) = torch.autograd.grad(batch.square().mean(), batch)
    assert (gradient * matching).sum() >= (1 - run.step / 16) * matching.square().sum() * 0.999
    assert weight > 0 or run.step == 0


def test_slack_limits_the_error_at_the_last_batch_norm(tiny_model):
    fixed = replace(SMALL, output_share=None, output_weight=1.0)
    free = dgh.generate(tiny_model, replace(fixed, slack=None), progress=False)
    held = dgh.generate(tiny_model, replace(fixed, slack=0.1), progress=False)
    with torch.no_grad():
        ranges = [output_range(tiny_model.net(images)).max() for images in (free, held)]
    assert ranges[1] < ranges[0]


def test_images_matched_together_may_deviate_alone(tiny_model):
    """The purpose of the aggregation (section 5.1): images matched together deviate more than images matched alone."""

    def deviation(scope: int | None) -> float:
        config = replace(SMALL, scope=scope, output_stretching=False, preprocessing=False)
        images = dgh.generate(tiny_model, config, progress=False)
        return images.mean((2, 3)).std(0).mean().item()

    assert deviation(None) > 2 * deviation(1)


@pytest.mark.parametrize(("scope", "num_banks"), [(None, 1), (24, 1), (16, 2), (8, 3), (4, 3), (1, 3)])
def test_scope_decides_how_many_batches_share_a_bank(scope, num_banks, tiny_model):
    config = dgh.Config(num_images=24 if scope != 16 else 32, batch_size=8, steps=1, scope=scope)
    run = dgh._Run(tiny_model, config, "cpu")
    run.make_room()
    run.begin()
    assert len({id(bank) for bank, _ in run.banks}) == num_banks


@pytest.mark.parametrize("scope", [5, 12, 48])
def test_a_scope_that_does_not_fit_is_refused(scope):
    with pytest.raises(ValueError, match=f"scope {scope} must divide"):
        dgh.Config(num_images=24, batch_size=8, scope=scope)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"spread": "sd"}, "spread must be one of 'std', 'variance', got 'sd'"),
        ({"output_power": 3}, "output_power must be one of 1, 2, got 3"),
        ({"augmentation": "none"}, "augmentation must be one of"),
        ({"extra_pixels": -1}, "extra_pixels must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        dgh.Config(**setting)


def test_weights_get_no_gradients(tiny_model):
    run = dgh._Run(tiny_model, SMALL, "cpu")
    run.make_room()
    run.begin()
    run.move(0)
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in run.net.parameters())


def test_augmentation_draws_for_every_image_or_for_the_batch(tiny_model):
    def distinct(augmentation: Literal["image", "batch"]) -> int:
        config = replace(SMALL, augmentation=augmentation, extra_pixels=4)
        run = dgh._Run(tiny_model, config, "cpu")
        run.make_room()
        run.begin()
        same = run.images[0][:1].detach().expand(8, -1, -1, -1)
        return len(run._prepared(same).unique(dim=0))

    assert distinct("batch") == 1
    assert distinct("image") > 3


def test_images_are_larger_than_the_crop_by_a_seventh(tiny_model):
    model = replace(tiny_model, image_shape=(3, 224, 224))
    assert dgh._image_shape(model, dgh.Config()) == (3, 256, 256)
    model = replace(tiny_model, image_shape=(3, 32, 64))
    assert dgh._image_shape(model, dgh.Config()) == (3, 36, 74)
    assert dgh._image_shape(model, dgh.Config(preprocessing=False)) == (3, 32, 64)


def test_a_loss_that_is_nan_stops_the_run(tiny_model, monkeypatch):
    monkeypatch.setattr(dgh, "output_range", lambda output: output.sum(1) * torch.nan)
    with pytest.raises(FloatingPointError, match="the loss of DGH is nan after 0 steps"):
        dgh.generate(tiny_model, SMALL, progress=False)


PEAK = """
import resource, sys
import torch
from dghlib import models
from dghlib.generators import dgh

torch.set_num_threads(1)
config = dgh.Config(num_images=int(sys.argv[1]), batch_size=64, steps=1)
dgh.generate(models.load("shapes_bottleneck"), config, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_grows_only_by_the_images_and_their_optimizer():
    few, many = 64, 1024
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK, str(count)], capture_output=True, check=True).stdout)
        for count in (few, many)
    ]
    # Per image: the image with its margin, its gradient, 2 running averages, and the final crop.
    kilobytes_per_image = 3 * (4 * 36**2 + 32**2) * 4 / 1024
    allowed = (many - few) * kilobytes_per_image
    assert peaks[1] - peaks[0] < 1.3 * allowed + 30_000


def test_a_full_disk_leaves_no_files_of_values(tiny_model, tmp_path, monkeypatch):
    allocate, calls = large_sets._allocate, []

    def full(handle, size):
        calls.append(size)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(handle, size)

    monkeypatch.setattr(dgh, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(large_sets, "_allocate", full)
    with pytest.raises(OSError, match=r"no room for .*gradients"):
        dgh.generate(tiny_model, SMALL, progress=False, checkpoint=tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


def test_a_batch_too_large_for_memory_creates_no_files(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(dgh, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(dgh.memory, "available", lambda device: 1)
    with pytest.raises(torch.OutOfMemoryError, match="not even one image fits"):
        dgh.generate(tiny_model, SMALL, progress=False, checkpoint=tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())
