"""Generators with a network that makes the images, as their papers and authors' code describe them: plain loops.

Each loop is the specification of a module, which does the same in a faster way: the images must agree.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_statistics import deviation, mean_and_variance, same, seen_by_norms
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dghlib.generators import genie_d, genq, qimera
from dghlib.images import normalise
from dghlib.models import FloatModel
from dghlib.seeds import derived_seed, stream


class StridedNet(nn.Module):
    """TinyNet with a strided convolution in front of each of its batch norms but the first: (N, 3, 8, 8) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 1, stride=2), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(self.bn3(self.conv3(x)).mean((2, 3)))


@pytest.fixture
def strided_model() -> FloatModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = StridedNet()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            net(torch.randn(256, 3, 8, 8) * torch.tensor([1.2, 0.8, 0.5]).view(3, 1, 1))
    return FloatModel(name="strided", net=net.eval(), image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


# GENIE: a network makes the batch; standard deviations; means over channels, sums over layers; each image has
# mean 0 and deviation 1; inputs of strided convolutions are shifted.


def genie_in_full(model: FloatModel, config: genie_d.Config) -> tuple[Tensor, set[float], set[float]]:
    sizes = [len(part) for part in torch.arange(config.num_images).split(config.batch_size)]
    finished: list[Tensor] = []
    rates: set[float] = set()
    latent_rates: set[float] = set()
    for index, count in enumerate(sizes):
        latents = torch.randn(
            count, config.latent_size, generator=stream(config.seed, "genie_d", "latents", index)
        ).requires_grad_()
        network = drawn_from(genie_network, config.latent_size, seed=(config.seed, "genie_d", "network", index))
        shifts = stream(config.seed, "genie_d", "shifts", index)
        hooks = swinging(model.net, shifts)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        latent_optimizer = torch.optim.Adam([latents], lr=0.1)
        patience = config.steps // 40
        schedule = ReduceLROnPlateau(latent_optimizer, factor=0.1, patience=patience, min_lr=1e-4)
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = 0.01 * 0.95 ** (step // patience)
            images = network(latents)
            loss = genie_loss(model.net, images)
            optimizer.zero_grad()
            latent_optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            latent_optimizer.step()
            schedule.step(loss.item())
            rates.add(optimizer.param_groups[0]["lr"])
            latent_rates.add(latent_optimizer.param_groups[0]["lr"])
        for hook in hooks:
            hook.remove()
        finished.append(images.detach())
    return torch.cat(finished), rates, latent_rates


def drawn_from(build: Any, *arguments: Any, seed: tuple[Any, ...]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(*seed))
        return build(*arguments)


def genie_network(latent_size: int) -> nn.Module:
    """Return the generator network for images (3, 8, 8), which starts at a quarter of this size."""
    return nn.Sequential(
        nn.Linear(latent_size, 128 * 2 * 2),
        nn.Unflatten(1, (128, 2, 2)),
        nn.BatchNorm2d(128),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 3, 3, padding=1),
        nn.Tanh(),
        nn.BatchNorm2d(3, affine=False),
    )


def swinging(net: nn.Module, draws: torch.Generator) -> list[Any]:
    def swing(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        top, left = torch.randint(3, (2,), generator=draws).tolist()
        return (F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, top : top + x.shape[2], left : left + x.shape[3]],)

    strided = [each for each in net.modules() if isinstance(each, nn.Conv2d) and each.stride != (1, 1)]
    return [layer.register_forward_pre_hook(swing) for layer in strided]


def genie_loss(net: nn.Module, images: Tensor) -> Tensor:
    loss = torch.zeros(())
    for x, mean, variance in seen_by_norms(net, images)[1]:
        measured, spread = mean_and_variance(x)
        loss = loss + ((measured - mean).square() + (deviation(spread) - deviation(variance)).square()).mean()
    for image in images:
        measured, spread = mean_and_variance(image[None])
        loss = loss + (measured.square().sum() + (deviation(spread) - 1).square().sum()) / len(images)
    return loss


def test_genie_equals_its_plain_loop(strided_model: FloatModel) -> None:
    config = genie_d.Config(num_images=11, batch_size=6, steps=80, latent_size=7, seed=3)
    expected, rates, latent_rates = genie_in_full(strided_model, config)
    assert len(rates) == 40
    assert min(latent_rates) < 0.1, "the schedule was at work"
    same(genie_d.generate(strided_model, config, progress=False), expected)


# Qimera: a network learns to make images of classes and of mixtures of classes; cross entropy with the mixture, and
# variances, means over channels and layers. It makes the images afterwards.


class PlainQimera(nn.Module):
    """The generator network, for images (3, 8, 8) and classes whose scales and shifts are mixed like embeddings."""

    def __init__(self, embeddings: Tensor, conditional: bool):
        super().__init__()
        classes, width = embeddings.shape
        self.embeddings = nn.Parameter(embeddings.clone())
        self.linear = nn.Linear(width, 128 * 2 * 2)
        self.convolutions = nn.ModuleList([nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 64, 3, padding=1)])
        self.last = nn.Conv2d(64, 3, 3, padding=1)
        rows = classes if conditional else 1
        self.scales, self.shifts = (
            nn.ParameterList([fill(rows, channels) for channels in (128, 128, 64)])
            for fill in (torch.ones, torch.zeros)
        )

    def forward(self, classes: Tensor, shares: Tensor, noise: Tensor) -> Tensor:
        vectors = []
        for one in range(len(classes)):
            mixed = torch.zeros(())
            for label, share, disturbance in zip(classes[one], shares[one], noise[one], strict=True):
                vector = self.embeddings[label] + disturbance
                vector = (vector - vector.mean()) / (vector.var(correction=0) + 1e-5).sqrt()
                mixed = mixed + share * vector
            vectors.append(mixed)
        maps = self.linear(torch.stack(vectors)).view(-1, 128, 2, 2)
        maps = self.of_classes(0, standardised(maps, 1e-5), classes, shares)
        for number, convolution in enumerate(self.convolutions, start=1):
            maps = standardised(convolution(F.interpolate(maps, scale_factor=2)), 0.8)
            maps = F.leaky_relu(self.of_classes(number, maps, classes, shares), 0.2)
        return standardised(torch.tanh(self.last(maps)), 1e-5)

    def of_classes(self, number: int, maps: Tensor, classes: Tensor, shares: Tensor) -> Tensor:
        scales, shifts = self.scales[number], self.shifts[number]
        if len(scales) == 1:
            return maps * scales[0][:, None, None] + shifts[0][:, None, None]
        scale, shift = ((shares[:, :, None] * rows[classes]).sum(1)[:, :, None, None] for rows in (scales, shifts))
        return maps * scale + shift


def standardised(maps: Tensor, epsilon: float) -> Tensor:
    mean, variance = (each[:, None, None] for each in mean_and_variance(maps))
    return (maps - mean) / (variance + epsilon).sqrt()


def mixtures(count: int, mixed: int, width: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    classes = torch.randint(5, (count * mixed,), generator=draws).view(count, mixed)
    shares = torch.randn(count, mixed, generator=draws).softmax(1)
    return classes, shares, torch.randn(count, mixed, width, generator=draws)


def qimera_in_full(model: FloatModel, config: qimera.Config) -> Tensor:
    head = model.net.get_submodule("linear")
    assert isinstance(head, nn.Linear)
    embeddings = torch.randn(5, head.in_features, generator=stream(config.seed, "qimera", "embeddings"))
    if config.embeddings == "classifier":
        embeddings = head.weight.detach()
    network = drawn_from(PlainQimera, embeddings, config.conditional, seed=(config.seed, "qimera", "network"))
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.5, 0.999))
    draws = stream(config.seed, "qimera", "training")
    updates = config.steps * -(-config.num_images // config.batch_size)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = config.learning_rate * 0.1 ** min(3, 4 * update // updates)
        mixed = config.mixed_classes if torch.rand((), generator=draws).item() < config.superposed else 1
        classes, shares, noise = mixtures(config.batch_size, mixed, head.in_features, draws)
        logits, seen = seen_by_norms(model.net, network(classes, shares, noise))
        errors = []
        for x, mean, variance in seen:
            measured, spread = mean_and_variance(x)
            errors.append((measured - mean).square().mean() + (spread - variance).square().mean())
        likelihoods = logits.log_softmax(1).gather(1, classes)  # of each class in an image
        loss = -(shares * likelihoods).sum(1).mean() + 0.1 * sum(errors) / len(errors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    draws = stream(config.seed, "qimera", "images")
    superposed = round(config.superposed * config.num_images)
    made = []
    for mixed, count in ((config.mixed_classes, superposed), (1, config.num_images - superposed)):
        for part in torch.arange(count).split(config.batch_size):
            with torch.no_grad():
                made.append(network(*mixtures(len(part), mixed, head.in_features, draws)))
    return torch.cat(made)[torch.randperm(config.num_images, generator=draws)]


@pytest.mark.parametrize("conditional", [True, False])
def test_qimera_equals_its_plain_loop(conditional: bool, tiny_model: FloatModel) -> None:
    config = qimera.Config(num_images=13, batch_size=5, steps=8, seed=3, mixed_classes=3, conditional=conditional)
    if conditional:
        config = replace(config, embeddings="classifier")
    same(qimera.generate(tiny_model, config, progress=False), qimera_in_full(tiny_model, config))


# GenQ: of a pipeline's images, those of high energy are discarded first, then those without which the rest comes
# nearer to the running statistics.


def kept_of(net: nn.Module, images: Tensor, keep: int, energy_share: float) -> list[int]:
    discarded = len(images) - keep
    by_energy = len(images) - round(energy_share * discarded)
    with torch.no_grad():
        energies = [-math.log(sum(math.exp(value) for value in net(image[None])[0])) for image in images]
        left = sorted(sorted(range(len(images)), key=energies.__getitem__)[:by_energy])
        whole = distance_of(net, images[left])
        gains = {one: whole - distance_of(net, images[[other for other in left if other != one]]) for one in left}
    return sorted(sorted(left, key=gains.__getitem__)[:keep])


def distance_of(net: nn.Module, images: Tensor) -> float:
    """Return the norms of the errors of means and variances, summed over the layers."""
    total = 0.0
    for x, mean, variance in seen_by_norms(net, images)[1]:
        measured, spread = mean_and_variance(x)
        total += (measured - mean).norm().item() + (spread - variance).norm().item()
    return total


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_genq_keeps_the_images_of_the_plain_filters(
    share: float, tiny_model: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randint(0, 256, (16, 3, 8, 8), generator=stream(3, "test")).to(torch.uint8)
    pixels[:, 0, 2:6, 2:6] //= torch.arange(1, 17)[:, None, None].to(torch.uint8)
    monkeypatch.setattr(genq, "_make_candidates", lambda *_: pixels)
    config = genq.Config(num_images=8, energy_share=share)
    images = normalise(pixels, tiny_model.mean, tiny_model.std)
    made = genq.generate(tiny_model, config, progress=False)
    assert torch.equal(made, images[kept_of(tiny_model.net, images, 8, share)])
