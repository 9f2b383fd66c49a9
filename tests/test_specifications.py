"""Generators that optimize images, as their papers and authors' code describe them: plain loops, one layer at a time.

Each loop is the specification of a module, which does the same in a faster way: the images must agree. Random numbers
are drawn from streams that are named here, in the order of the loop.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_model, make_tiny_transformer
from plain_statistics import clipped, deviation, mean_and_variance, same, seen_by_norms
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dghlib.generators import deep_inversion, intraq, psaq_vit, zeroq
from dghlib.models import FloatModel
from dghlib.seeds import stream

# ZeroQ: each image alone; standard deviations; sums over channels and layers, of which the image is one; a mean over
# the images of a batch, which share only the learning rate.


def zeroq_in_full(model: FloatModel, config: zeroq.Config) -> tuple[Tensor, list[float]]:
    whole = torch.randint(0, 255, (config.num_images, 3, 8, 8), generator=stream(config.seed, "zeroq"))
    patience = config.steps // 5 if config.scaled_schedule else 100
    finished: list[Tensor] = []
    rates: list[float] = []
    for start in ((whole - 127.5) / 5418.75).split(config.batch_size):
        batch = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([batch], lr=config.learning_rate)
        schedule = ReduceLROnPlateau(optimizer, factor=0.1, patience=patience, min_lr=1e-4)
        for _ in range(config.steps):
            loss = torch.stack([zeroq_loss(model.net, image[None]) for image in batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
        finished.append(batch.detach())
    return torch.cat(finished), rates


def zeroq_loss(net: nn.Module, image: Tensor) -> Tensor:
    pixels = (image, torch.zeros(3), torch.ones(3))
    loss = torch.zeros(())
    for x, mean, variance in [pixels, *seen_by_norms(net, image)[1]]:
        measured, spread = mean_and_variance(x)
        loss = loss + (measured - mean).square().sum() + (deviation(spread) - deviation(variance)).square().sum()
    return loss


@pytest.mark.parametrize("scaled", [True, False])
def test_zeroq_equals_its_plain_loop(scaled: bool, tiny_model: FloatModel) -> None:
    config = zeroq.Config(num_images=5, batch_size=3, steps=10, learning_rate=3.0, seed=3, scaled_schedule=scaled)
    expected, rates = zeroq_in_full(tiny_model, config)
    assert (min(rates) < config.learning_rate) == scaled, "the schedule was at work"
    same(zeroq.generate(tiny_model, config, progress=False), expected)


# IntraQ: a batch together; variances; means over channels and layers; soft targets; distances from class centres.


def intraq_in_full(model: FloatModel, config: intraq.Config) -> tuple[Tensor, list[float]]:
    noise = torch.randn(config.num_images, 3, 8, 8, generator=stream(config.seed, "intraq", "images"))
    labels = torch.randint(5, (config.num_images,), generator=stream(config.seed, "intraq", "labels"))
    features: dict[int, list[Tensor]] = {}
    finished: list[Tensor] = []
    rates: list[float] = []
    for index, (start, classes) in enumerate(
        zip(noise.split(config.batch_size), labels.split(config.batch_size), strict=True)
    ):
        draws = stream(config.seed, "intraq", "augmentation", index)
        lowest = config.soft_target
        soft = lowest + (1 - lowest) * torch.rand(len(start), generator=draws)
        targets = torch.where(torch.rand(len(start), generator=draws) < 0.5, soft, torch.ones(()))
        centres = {label: torch.stack(known).mean(0) for label, known in features.items()}
        batch = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([batch], lr=config.learning_rate)
        schedule = ReduceLROnPlateau(optimizer, factor=0.1, patience=config.steps // 20, min_lr=1e-4)
        for _ in range(config.steps):
            loss = intraq_loss(model.net, cropped(batch, config, draws), classes.tolist(), targets, centres, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
        finished.append(batch.detach())
        for image, label in zip(finished[-1], classes.tolist(), strict=True):
            features.setdefault(label, []).append(feature(model.net, image[None])[0])
    return torch.cat(finished), rates


def feature(net: nn.Module, images: Tensor) -> Tensor:
    """Return the input of the last linear layer."""
    given: list[Tensor] = []
    hook = net.get_submodule("linear").register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    net(images)
    hook.remove()
    return given[0]


def intraq_loss(
    net: nn.Module,
    shown: Tensor,
    labels: Sequence[int],
    targets: Tensor,
    centres: dict[int, Tensor],
    config: intraq.Config,
) -> Tensor:
    logits, seen = seen_by_norms(net, shown)
    errors = []
    for x, mean, variance in seen:
        measured, spread = mean_and_variance(x)
        errors.append((measured - mean).square().mean() + (spread - variance).square().mean())
    loss = torch.stack(errors).mean()
    for probabilities, label, target in zip(logits.softmax(1), labels, targets, strict=True):
        loss = loss + (probabilities[label] - target).square() / len(labels)
    strays = []
    for own, label in zip(feature(net, shown), labels, strict=True):
        if label in centres:
            centre = centres[label].detach()
            distance = 1 - (own @ centre) / (own.norm() * centre.norm())
            strays.append((config.nearest - distance).clamp_min(0) + (distance - config.farthest).clamp_min(0))
    return loss + torch.stack(strays).mean() if strays else loss


def cropped(batch: Tensor, config: intraq.Config, draws: torch.Generator) -> Tensor:
    """Return the batch or, half the time, a window of each image at full size, half of the windows mirrored."""
    count, size = len(batch), 8
    if torch.rand((), generator=draws) >= 0.5:
        return batch
    areas = size * size * (config.crop_area + (1 - config.crop_area) * torch.rand(10, count, generator=draws))
    ratios = torch.exp(math.log(4 / 3) * (2 * torch.rand(10, count, generator=draws) - 1))  # 3/4 to 4/3
    sides = []
    for one in range(count):
        tries = [
            (round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio)))
            for area, ratio in zip(areas[:, one].tolist(), ratios[:, one].tolist(), strict=True)
        ]
        fitting = [pair for pair in tries if max(pair) <= size]
        sides.append(fitting[0] if fitting else (min(tries[0][0], size), min(tries[0][1], size)))
    tops, lefts = (torch.rand(count, generator=draws).tolist() for _ in range(2))
    flips = torch.rand(count, generator=draws) < 0.5
    windows = []
    for image, (height, width), down, right, flip in zip(batch, sides, tops, lefts, flips.tolist(), strict=True):
        top, left = int(down * (size - height + 1)), int(right * (size - width + 1))
        window = image[None, :, top : top + height, left : left + width]
        enlarged = F.interpolate(window, (size, size), mode="bilinear", align_corners=False)
        windows.append(enlarged.flip(3) if flip else enlarged)
    return torch.cat(windows)


def test_intraq_equals_its_plain_loop(tiny_model: FloatModel) -> None:
    config = intraq.Config(
        num_images=20, batch_size=8, steps=20, seed=3, soft_target=0.3, nearest=0.2, farthest=0.4, crop_area=0.3
    )
    expected, rates = intraq_in_full(tiny_model, config)
    assert min(rates) < config.learning_rate, "the schedule was at work"
    same(intraq.generate(tiny_model, config, progress=False), expected)


# DeepInversion: a batch together; norms of the errors of means and variances, the first layer tenfold; cross entropy;
# variation and size.


def inverted_in_full(model: FloatModel, config: deep_inversion.Config, student: nn.Module | None) -> Tensor:
    noise = torch.randn(config.num_images, 3, 8, 8, generator=stream(config.seed, "deep_inversion", "images"))
    labels = torch.randint(5, (config.num_images,), generator=stream(config.seed, "deep_inversion", "labels"))
    finished = []
    for index, start in enumerate(noise.split(config.batch_size)):
        draws = stream(config.seed, "deep_inversion", "augmentation", index)
        classes = labels.split(config.batch_size)[index]
        batch = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([batch], betas=(0.5, 0.9))
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = config.learning_rate * risen_and_fallen(step, config.steps, 0.05)
            loss = inversion_loss(model.net, batch, classes, student, config, draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batch.data = clipped(batch.data, model)
        finished.append(batch.detach())
    return torch.cat(finished)


def risen_and_fallen(step: int, steps: int, share: float) -> float:
    if step < share * steps:
        return (step + 1) / (share * steps + 1)
    return (1 + math.cos(math.pi * (step - share * steps) / (steps - share * steps))) / 2


def inversion_loss(
    net: nn.Module,
    batch: Tensor,
    classes: Tensor,
    student: nn.Module | None,
    config: deep_inversion.Config,
    draws: torch.Generator,
) -> Tensor:
    down, right = (int(torch.randint(-1, 2, (), generator=draws)) for _ in range(2))  # 30 of 224, of 8: 1 pixel
    shown = batch.roll((down, right), (2, 3))
    if torch.rand((), generator=draws) < 0.5:
        shown = shown.flip(3)
    logits, seen = seen_by_norms(net, shown)
    loss = F.cross_entropy(logits, classes) + 1e-5 * sum(image.norm() for image in batch) / len(batch)
    for number, (x, mean, variance) in enumerate(seen):
        measured, spread = mean_and_variance(x)
        weight = 0.01 * (10 if number == 0 else 1)
        loss = loss + weight * ((measured - mean).norm() + (spread - variance).norm())
    loss = loss + 1e-4 * variation(shown)
    if student is not None:
        ours, theirs = ((output / 3).softmax(1).clamp(0.01, 0.99) for output in (logits, student(shown)))
        middle = (ours + theirs) / 2
        halves = [(each * (each.log() - middle.log())).sum(1).mean() for each in (ours, theirs)]
        loss = loss + config.competition_weight * (1 - sum(halves) / 2)
    return loss


def variation(images: Tensor) -> Tensor:
    """Return the norms of the differences to the neighbours right, below, and on both diagonals, summed."""
    pairs = [
        (images[:, :, :, 1:], images[:, :, :, :-1]),
        (images[:, :, 1:], images[:, :, :-1]),
        (images[:, :, 1:, 1:], images[:, :, :-1, :-1]),
        (images[:, :, 1:, :-1], images[:, :, :-1, 1:]),
    ]
    return torch.stack([(one - other).square().sum().sqrt() for one, other in pairs]).sum()


@pytest.mark.parametrize("competition", [0.0, 0.2])
def test_deep_inversion_equals_its_plain_loop(competition: float, tiny_model: FloatModel) -> None:
    config = deep_inversion.Config(num_images=7, batch_size=4, steps=40, seed=3, competition_weight=competition)
    student = make_tiny_model(seed=1) if competition else None
    expected = inverted_in_full(tiny_model, config, student.net if student else None)
    same(deep_inversion.generate(tiny_model, config, progress=False, student=student), expected)


# PSAQ-ViT: the entropy of the similarities of patches, summed over the attentions; cross entropy; variation near a
# target. The rate starts again in the second half, in which shifts are twice as far.


def psaq_in_full(model: FloatModel, config: psaq_vit.Config) -> Tensor:
    noise = torch.randn(config.num_images, 3, 16, 16, generator=stream(config.seed, "psaq_vit", "images"))
    labels = torch.randint(5, (config.num_images,), generator=stream(config.seed, "psaq_vit", "labels"))
    half, finished = config.steps // 2, []
    for index, start in enumerate(noise.split(config.batch_size)):
        draws = stream(config.seed, "psaq_vit", "augmentation", index)
        target = 2500 + 500 * torch.rand((), generator=draws).item()  # of 32 images of 224 pixels
        target *= math.sqrt(start.numel() / (32 * 3 * 224 * 224))
        batch = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([batch], betas=(0.5, 0.9))
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = 0.2 * risen_and_fallen(step % half, half, 0.2)
            furthest = round(30 / 224 * 16 / (2 if step < half else 1))
            terms = psaq_terms(model.net, batch, labels.split(config.batch_size)[index], target, furthest, draws)
            loss = terms[0] + config.class_weight * terms[1] + config.variation_weight * terms[2]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batch.data = clipped(batch.data, model)
        finished.append(batch.detach())
    return torch.cat(finished)


def psaq_terms(
    net: nn.Module, batch: Tensor, labels: Tensor, target: float, furthest: int, draws: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    shift = int(torch.randint(-furthest, furthest + 1, (), generator=draws))
    shown = batch.roll((shift, shift), (2, 3))
    if torch.rand((), generator=draws) < 0.5:
        shown = shown.flip(3)
    given: dict[nn.MultiheadAttention, Tensor] = {}
    attentions = [module for module in net.modules() if isinstance(module, nn.MultiheadAttention)]
    hooks = [each.register_forward_pre_hook(lambda one, args: given.update({one: args[0]})) for each in attentions]
    logits = net(shown)
    for hook in hooks:
        hook.remove()
    entropies = [entropy(mixed_patches(each, tokens)) for each, tokens in given.items()]
    return -torch.stack(entropies).sum(), F.cross_entropy(logits, labels), (variation(shown) - target).abs()


def mixed_patches(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Return the mixed patches of an attention, (N, P, D), as a mean over its heads, without the class token."""
    queries, keys, values = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=2)
    size = queries.shape[2] // attention.num_heads
    mixed = []
    for head in range(attention.num_heads):
        query, key, value = (each[:, :, head * size : (head + 1) * size] for each in (queries, keys, values))
        mixed.append((query @ key.transpose(1, 2) / math.sqrt(size)).softmax(2) @ value)
    return torch.stack(mixed).mean(0)[:, 1:]


def entropy(patches: Tensor) -> Tensor:
    """Return the mean entropy of the similarities of all pairs, at 10 points from the least to the greatest."""
    similarities = F.cosine_similarity(patches[:, :, None], patches[:, None], dim=3).flatten(1)
    points = torch.linspace(similarities.min().item(), similarities.max().item(), 10)
    total = torch.zeros(())
    for values in similarities:
        kernels = torch.exp(-(((points[:, None] - values) / 0.01) ** 2) / 2) / (0.01 * math.sqrt(2 * math.pi))
        density = kernels.mean(1) + 1e-4
        terms = -density * density.log()
        total = total + ((terms[1:] + terms[:-1]) / 2 * (points[1:] - points[:-1])).sum()
    return total / len(similarities)


@pytest.mark.parametrize(("class_weight", "variation_weight"), [(1.0, 0.05), (0.0, 0.0)])
def test_psaq_vit_equals_its_plain_loop(class_weight: float, variation_weight: float) -> None:
    model = make_tiny_transformer(image_size=16)
    weights = {"class_weight": class_weight, "variation_weight": variation_weight}
    config = replace(psaq_vit.Config(num_images=5, batch_size=3, steps=12, seed=3), **weights)  # type: ignore[arg-type]
    # Adam moves a pixel by its rate, 0.2, even if the gradient is little more than a rounding error.
    same(psaq_vit.generate(model, config, progress=False), psaq_in_full(model, config), atol=0.02)
