"""Shared by the specification tests: statistics as the papers define them, in plain loops over the layers."""

import torch
from torch import Tensor, nn

from dghlib.models import FloatModel


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def seen_by_norms(net: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Return the logits, and for each batch norm its input, its running mean and its running variance."""
    given: list[Tensor] = []
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for norm in norms_of(net)]
    logits = net(images)
    for hook in hooks:
        hook.remove()
    stored = [(norm.running_mean, norm.running_var) for norm in norms_of(net)]
    return logits, [(x, *pair) for x, pair in zip(given, stored, strict=True)]  # type: ignore[misc]


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of every channel of (N, C, H, W), over all images."""
    mean = x.mean((0, 2, 3))
    return mean, (x - mean[:, None, None]).square().mean((0, 2, 3))


def deviation(variance: Tensor) -> Tensor:
    return (variance + 1e-6).sqrt()


def clipped(images: Tensor, model: FloatModel) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    return images.clamp(-mean / std, (1 - mean) / std)


def same(made: Tensor, expected: Tensor, atol: float = 2e-3) -> None:
    torch.testing.assert_close(made, expected, rtol=0, atol=atol)
