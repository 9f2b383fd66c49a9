"""DGH as the paper describes it, as a sequence of plain operations; `dgh.generate` gives the same images, faster."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dghlib.generators import dgh, radam
from dghlib.generators.schedules import PlateauWithReset
from dghlib.models import FloatModel
from dghlib.seeds import stream


class PlainLoop:
    """Algorithm 1 on images of one size; the moments of all batches are averaged again in every step."""

    def __init__(self, model: FloatModel, config: dgh.Config):
        self.model, self.config = model, config
        self.norms = [module for module in model.net.modules() if isinstance(module, nn.BatchNorm2d)]
        self.draws = stream(config.seed, "dgh", "augmentation")
        size = model.image_shape[1] + 2 * round(model.image_shape[1] / 14)  # 32 more at 224 pixels, and even
        noise = torch.randn(config.num_images, 3, size, size, generator=stream(config.seed, "dgh", "images"))
        self.images = [batch.clone().requires_grad_() for batch in noise.split(config.batch_size)]
        self.rates = PlateauWithReset(config.learning_rate, patience=max(1, config.steps // 50))
        self.optimizers = [torch.optim.RAdam([batch], lr=config.learning_rate) for batch in self.images]

    def generate(self) -> Tensor:
        with torch.no_grad():
            self.bank = [self.measured(batch)[0] for batch in self.images]
        self.weight = self.config.output_weight
        for step in range(self.config.steps):
            self.step = step
            order = torch.randperm(len(self.images), generator=self.draws).tolist()
            losses, weights = zip(*[self.move(index) for index in order], strict=True)
            self.rates.step(sum(losses) / len(losses))
            self.weight = sum(weights) / len(weights)
        size = self.model.image_shape[1]
        first = (self.images[0].shape[2] - size) // 2
        smoothed = [self.smoothed(batch.detach()) for batch in self.images]
        return self.clipped(torch.cat(smoothed)[:, :, first : first + size, first : first + size])

    def move(self, index: int) -> tuple[float, float]:
        moments, output, last = self.measured(self.images[index])
        joint = torch.stack([*self.bank[:index], moments, *self.bank[index + 1 :]]).mean(0)
        bns = self.distance(joint)
        stretched = output.amax(1) - output.amin(1)
        slack = 0 if self.config.slack is None else self.slack(last)
        odsl = (slack - stretched).mean()
        share, weight = self.config.output_share, self.weight
        if share is not None and self.step % max(1, self.config.steps // 8) == 0:
            matching, reward = (
                torch.autograd.grad(loss, self.images[index], retain_graph=True)[0].norm()
                for loss in (bns, odsl / len(self.bank))
            )
            weight = (share * self.step / self.config.steps * matching / reward).item()
        (gradient,) = torch.autograd.grad(bns + weight * odsl / len(self.bank), self.images[index])
        optimizer = self.optimizers[index]
        optimizer.param_groups[0]["lr"] = self.rates.learning_rate
        self.images[index].grad = gradient
        optimizer.step()
        self.bank[index] = moments.detach()
        return (bns if share is not None else bns + weight * odsl).item(), weight

    def measured(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the moments (2, K) of a batch, its logits, and the input of the last batch norm."""
        given: list[Tensor] = []
        hooks = [norm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for norm in self.norms]
        output = self.model.net(self.prepared(batch))
        for hook in hooks:
            hook.remove()
        moments = [torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]) for x in given]
        return torch.cat(moments, dim=1), output, given[-1]

    def distance(self, moments: Tensor) -> Tensor:
        sizes = [norm.num_features for norm in self.norms]
        layers = zip(self.norms, moments.split(sizes, dim=1), strict=True)
        return sum((self._distance(norm, *each) for norm, each in layers), torch.zeros(())) / len(self.norms)

    def _distance(self, norm: nn.BatchNorm2d, mean: Tensor, mean_square: Tensor) -> Tensor:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        unit = norm.running_var.mean() if self.config.relative else 1
        std, wanted = ((mean_square - mean**2) / unit + 1e-6).sqrt(), (norm.running_var / unit + 1e-6).sqrt()
        return ((mean - norm.running_mean) ** 2 / unit + (std - wanted) ** 2).mean()

    def slack(self, x: Tensor) -> Tensor:
        norm = self.norms[-1]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        wanted = (norm.running_var + 1e-6).sqrt()
        of_mean = ((x.mean((2, 3)) - norm.running_mean) ** 2).sum(1)
        of_std = (((x.var((2, 3), correction=0) + 1e-6).sqrt() - wanted) ** 2).sum(1)
        allowed = norm.running_var.sum()
        return (of_mean - allowed).clamp_min(0) + (of_std - allowed).clamp_min(0)

    def prepared(self, batch: Tensor) -> Tensor:
        count, size = len(batch), self.model.image_shape[1]
        room = batch.shape[2] - size + 1
        flips = torch.rand(count, generator=self.draws) < 0.5
        tops = torch.randint(room, (count,), generator=self.draws).tolist()
        lefts = torch.randint(room, (count,), generator=self.draws).tolist()
        parts = []
        for image, flip, top, left in zip(self.smoothed(batch), flips, tops, lefts, strict=True):
            turned = image.flip(2) if flip else image
            parts.append(turned[:, top : top + size, left : left + size])
        return self.clipped(torch.stack(parts))

    def smoothed(self, batch: Tensor) -> Tensor:
        row = torch.tensor([math.exp(-0.5 * (place / 1.25) ** 2) for place in (-1, 0, 1)])
        kernel = (row[:, None] * row) / row.sum() ** 2
        return nn.functional.conv2d(batch, kernel.expand(3, 1, 3, 3), padding=1, groups=3)

    def clipped(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.model.mean, self.model.std))
        clamped = images.detach().clamp(-mean / std, (1 - mean) / std)
        return images + (clamped - images).detach()  # gradients pass


@pytest.mark.parametrize("preset", ["default", "fixed_weight"])
def test_generate_equals_the_plain_loop(tiny_model, preset):
    # RAdam changes its rule at step 6; the weight of the reward is computed at every second step.
    config = replace(dgh.PRESETS[preset], num_images=12, batch_size=4, steps=16)
    plain = PlainLoop(tiny_model, config)
    expected = plain.generate()
    assert plain.rates.learning_rate < config.learning_rate  # the schedule changed the rate
    torch.testing.assert_close(dgh.generate(tiny_model, config, progress=False), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 5, 6, 40])
def test_radam_equals_that_of_torch(steps):
    draws = torch.Generator().manual_seed(0)
    ours = torch.randn(50, generator=draws)
    theirs = ours.clone().requires_grad_()
    optimizer = torch.optim.RAdam([theirs])
    averages = torch.zeros(50), torch.zeros(50)
    for step in range(1, steps + 1):
        gradient, rate = torch.randn(50, generator=draws), 0.1 / step
        radam.move(ours, gradient, *averages, step, rate)
        optimizer.param_groups[0]["lr"] = rate
        theirs.grad = gradient
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
