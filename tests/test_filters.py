"""GenQ's filters: energies and sensitivities by hand and by brute force; outliers among images are found."""

import math

import pytest
import torch
from conftest import make_tiny_transformer
from torch import Tensor, nn

from dghlib import datasets, models
from dghlib.generators import filters
from dghlib.images import normalise
from dghlib.models import FloatModel
from dghlib.running.batchnorm import NoBatchNorm, StoredStatistics, stored_statistics
from dghlib.synthesis.classes import NotAClassifier
from dghlib.synthesis.matching import measure


def noise(count: int, model: FloatModel, seed: int = 0) -> Tensor:
    return torch.randn(count, *model.image_shape, generator=torch.Generator().manual_seed(seed))


class Readout(nn.Module):
    """A network whose logits are the first 2 pixels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * self.scale


READOUT = FloatModel(name="readout", net=Readout(), image_shape=(1, 1, 3), mean=(0,), std=(1,))


class SmallTransformer(nn.Module):
    """Patches of 2x2 pixels after a class token, a layer norm on all tokens, one on the class token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 2, stride=2, bias=False)
        self.norm = nn.LayerNorm(12)
        self.head_norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(12).view(12, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).mT
        tokens = torch.cat([torch.ones_like(patches[:, :1]), patches], dim=1)
        return self.head(self.head_norm(self.norm(tokens)[:, 0]))


TRANSFORMER = FloatModel(
    name="transformer", net=SmallTransformer().eval(), image_shape=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3
)


def test_energy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [-50.0, 2.0]])
    assert filters.energy(logits).tolist() == pytest.approx([-math.log(2), -math.log(4), -2])
    assert filters.energy(logits[1:2], temperature=2).tolist() == pytest.approx([-2 * math.log(math.sqrt(3) + 1)])


def test_energy_differs_from_the_printed_equation():
    """Eq. 5 as printed is lowest for the most negative logit; the energy is lowest for the most certain image."""
    images = torch.tensor([[-90.0, 1.0, 0.0], [9.0, 1.0, 0.0]]).view(2, 1, 1, 3)
    assert filters.select(READOUT, images, 1, second_stage="none").tolist() == [1]


def test_energies_of_a_network_do_not_depend_on_batches(monkeypatch, tiny_model):
    images = noise(7, tiny_model)
    energies = filters.energy_scores(tiny_model, images)
    torch.testing.assert_close(energies, -tiny_model.net(images).detach().exp().sum(1).log())
    monkeypatch.setattr(filters, "BATCH_SIZE", 3)
    torch.testing.assert_close(filters.energy_scores(tiny_model, images), energies)


def two_layers() -> StoredStatistics:
    return StoredStatistics(
        names=("a", "b"), sizes=(2, 1), mean=torch.tensor([0.0, 0, 1]), variance=torch.tensor([1.0, 1, 4])
    )


def test_sensitivity_by_hand():
    """2 images. Without image 2, layer a has mean error (3, 4) and layer b variance error 4 - 4 = 0, and so on."""
    moments = torch.tensor([[[3.0, 4, 1], [10.0, 17, 5]], [[0.0, 0, 1], [1.0, 1, 5]]])
    both = 2.5 + math.hypot(5.5 - 1.5**2 - 1, 9 - 2**2 - 1)
    only_first, only_second = 5.0, 0.0
    expected = [both - only_second, both - only_first]
    assert filters.leave_one_out(moments, two_layers()).tolist() == pytest.approx(expected)


def brute_force(model: FloatModel, images: Tensor) -> Tensor:
    """Eq. 7 literally: one forward pass of all images but one, for each image."""
    layers = stored_statistics(model.net, model.image_shape)
    model.net.double()  # differences of nearly equal distances need double precision

    def distance(batch: Tensor) -> Tensor:
        mean, square = measure(model.net, batch, layers).moments[0]
        errors = zip(
            layers.per_layer(mean - layers.mean), layers.per_layer(square - mean**2 - layers.variance), strict=True
        )
        return torch.stack([of_mean.norm() + of_variance.norm() for of_mean, of_variance in errors]).sum()

    rest = [distance(torch.cat([images[:i], images[i + 1 :]])) for i in range(len(images))]
    return distance(images) - torch.stack(rest)


@pytest.mark.parametrize("batch_size", [64, 4])
def test_sensitivity_equals_leaving_each_image_out(tiny_model, monkeypatch, batch_size):
    monkeypatch.setattr(filters, "BATCH_SIZE", batch_size)
    images = noise(9, tiny_model)
    images[4] *= 3
    sensitivities = filters.batch_norm_sensitivities(tiny_model, images)
    with torch.no_grad():
        expected = brute_force(tiny_model, images.double())
    torch.testing.assert_close(sensitivities, expected.float(), rtol=1e-4, atol=1e-5)
    assert sensitivities.argmax() == 4


def test_sensitivity_takes_one_forward_pass(tiny_model):
    shown = 0

    def count(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal shown
        shown += len(args[0])

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_model.net
            self.register_forward_pre_hook(count)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = FloatModel(name="counting", net=Counting(), image_shape=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3)
    filters.batch_norm_sensitivities(model, noise(50, model))
    assert shown == 50 + 2 + 2, "two blank images find the layout and the layers"


def test_images_unlike_the_training_data_are_discarded(tiny_model):
    """5 of 40 images are much brighter than those of the batch-norm statistics."""
    coarse = torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    images = nn.functional.interpolate(coarse * torch.tensor([1.2, 0.8, 0.5]).view(3, 1, 1), 8, mode="bilinear")
    strangers = [3, 11, 12, 30, 39]
    images[strangers] += 6
    kept = filters.select(tiny_model, images, 35, energy_share=0)
    assert kept.tolist() == [number for number in range(40) if number not in strangers]


@pytest.mark.parametrize(("name", "energy_share"), [("shapes_residual", 0), ("shapes_inverted", 0.5)])
def test_noise_among_real_images_is_discarded(name, energy_share):
    """Batch norms recognise it in every network; its energy is high in the second, but low in the first."""
    model = models.load(name)
    real = normalise(datasets.load("shapes", "test", 96).images, model.mean, model.std)
    kept = filters.select(model, torch.cat([noise(32, model), real]), 64, energy_share=energy_share)
    assert len(kept) == 64
    assert kept.min() >= 32


def test_images_with_different_patches_are_preferred():
    draws = torch.Generator().manual_seed(0)
    plain = torch.randn(3, 3, 1, 1, generator=draws).expand(3, 3, 8, 8) + 0.01 * torch.randn(
        3, 3, 8, 8, generator=draws
    )
    varied = torch.randn(3, 3, 4, 4, generator=draws).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = torch.cat([plain, varied])
    assert filters.select(TRANSFORMER, images, 3, energy_share=0).tolist() == [3, 4, 5]


def test_the_class_token_is_not_a_patch():
    images = torch.full((1, 3, 8, 8), -1.0)
    net = TRANSFORMER.net
    assert filters._last_patches(TRANSFORMER, net, images).shape == (1, 16, 12)
    assert filters._last_patches(TRANSFORMER, net, images).eq(-1).all()


def test_patches_of_torchvisions_transformer_are_found():
    model = make_tiny_transformer()
    assert filters._last_patches(model, model.net, noise(2, model)).shape == (2, 16, 12)
    assert len(filters.select(model, noise(6, model), 3)) == 3


@pytest.mark.parametrize(("share", "by_energy"), [(0.0, 0), (0.5, 5), (1.0, 10), (0.24, 2)])
def test_both_stages_discard_their_share(monkeypatch, tiny_model, share, by_energy):
    kept = []
    chosen = filters.lowest

    def lowest(scores: Tensor, keep: int) -> Tensor:
        kept.append((len(scores), keep))
        return chosen(scores, keep)

    monkeypatch.setattr(filters, "lowest", lowest)
    assert len(filters.select(tiny_model, noise(20, tiny_model), 10, energy_share=share)) == 10
    first = [(20, 20 - by_energy)] if by_energy else []
    second = [(20 - by_energy, 10)] if by_energy < 10 else []
    assert kept == first + second


def test_the_network_is_unchanged_and_hooks_are_removed(tiny_model):
    net = tiny_model.net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    filters.select(tiny_model, noise(6, tiny_model), 3)
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_lowest_by_hand():
    assert filters.lowest(torch.tensor([3.0, 1, 2, 1, 0]), 3).tolist() == [1, 3, 4]
    assert filters.lowest(torch.zeros(4), 2).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"image 1 has the score nan"):
        filters.lowest(torch.tensor([0.0, math.nan]), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 5}, "cannot keep 5 of 4 images: generate more, or keep fewer"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"keep": 2, "energy_share": 1.5}, "energy_share must be from 0 to 1, got 1.5"),
        ({"keep": 2, "second_stage": "fid"}, "second_stage must be one of 'auto', .*, got 'fid'"),
        ({"keep": 2, "temperature": 0}, "temperature must be from 1e-06 to inf, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_model, settings, message):
    with pytest.raises(ValueError, match=message):
        filters.select(tiny_model, noise(4, tiny_model), **settings)


def test_a_single_image_has_no_sensitivity(tiny_model):
    with pytest.raises(ValueError, match="compares an image with others beside it; there is 1 image"):
        filters.batch_norm_sensitivities(tiny_model, noise(1, tiny_model))


def test_images_of_another_shape_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"tiny takes images \(N, 3, 8, 8\), got \(4, 3, 9, 8\)"):
        filters.energy_scores(tiny_model, torch.zeros(4, 3, 9, 8))


def test_a_network_without_batch_norm_or_patches_is_refused():
    images = torch.zeros(4, 1, 1, 3)
    with pytest.raises(filters.NoPatches, match=r'readout has neither batch norm nor.*second_stage="none"'):
        filters.select(READOUT, images, 2)
    with pytest.raises(NoBatchNorm):
        filters.select(READOUT, images, 2, second_stage="batch_norm")
    assert filters.select(READOUT, images, 2, second_stage="none").tolist() == [0, 1]


def test_a_network_without_classes_has_no_energy(tiny_model):
    model = FloatModel(name="maps", net=nn.Conv2d(3, 2, 1), image_shape=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3)
    with pytest.raises(NotAClassifier, match="the energy needs a network that returns logits"):
        filters.energy_scores(model, noise(4, model))
