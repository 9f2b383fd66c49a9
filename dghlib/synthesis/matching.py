"""The common part of methods that match batch norms: measuring a batch of images, and distances of statistics.

Every method compares moments at the inputs of batch norms with the running statistics, in its own way. The differences
are arguments here: per image, per batch or over all images; variance or standard deviation; sums or means over channels
and layers. `dghlib.synthesis.options` has the choices that are open to every method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dghlib.running.batchnorm import StoredStatistics, run_and_measure, variance_of

Spread = Literal["std", "variance"]
Reduction = Literal["mean", "sum"]
Distance = Literal["squared", "gaussian"]

# Keeps the derivative of the square root finite for a constant channel; the value of ZeroQ's and DGH's code.
STD_EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class Measurement:
    """The measurements of a forward pass of N images.

    Attributes:
        moments: (groups, 2, K), with graph.
        last_moments: (N, 2, C) of every image at the last batch norm, with graph.
        output: the output of the network: logits, or several tensors in any structure.
    """

    moments: Tensor
    last_moments: Tensor
    output: Any


def measure(net: nn.Module, images: Tensor, layers: StoredStatistics, groups: int = 1) -> Measurement:
    """Run images (N, C, H, W) through `net` and measure them at the given layers, in `groups` of equal size."""
    *others, last = layers.names
    output, measured = run_and_measure(net, images, dict.fromkeys(others, groups) | {last: len(images)})
    # The last layer is reduced only once: means over images of equal size are means over their pixels.
    pooled = [measured[name] for name in others] + [measured[last].unflatten(0, (groups, -1)).mean(1)]
    return Measurement(moments=torch.cat(pooled, dim=-1), last_moments=measured[last], output=output)


def with_pixels(layers: StoredStatistics, channels: int) -> StoredStatistics:
    """Return `layers` with the image itself as the first layer: mean 0 and variance 1 in normalised space.

    The network is a module with the name "", so its input is watched like that of any layer.
    """
    return StoredStatistics(
        names=("", *layers.names),
        sizes=(channels, *layers.sizes),
        mean=torch.cat([torch.zeros(channels, device=layers.mean.device), layers.mean]),
        variance=torch.cat([torch.ones(channels, device=layers.mean.device), layers.variance]),
    )


def channel_weights(sizes: Sequence[int], reduction: Reduction, device: torch.device) -> Tensor:
    """Return (K,) weights for summing squared differences: all 1, or those of means over channels and layers."""
    if reduction == "sum":
        return torch.ones(sum(sizes), device=device)
    return torch.cat([torch.full((size,), 1 / (size * len(sizes)), device=device) for size in sizes])


def spread_of(variance: Tensor, spread: Spread) -> Tensor:
    """Return the second statistic in the comparison: the variance itself or its square root."""
    return variance if spread == "variance" else (variance + STD_EPSILON).sqrt()


def batch_norm_distance(
    measured: Tensor,
    layers: StoredStatistics,
    weights: Tensor,
    spread: Spread,
    *,
    distance: Distance = "squared",
    slack: Tensor | None = None,
) -> Tensor:
    """Return the weighted distance of moments (..., 2, K) from the running statistics, (...): by default DGH, Eq. 4.

    Args:
        measured: the moments.
        layers: the running statistics.
        weights: of the channels, (K,), see `channel_weights`.
        spread: the second statistic, which has to be "std" for "gaussian".
        distance: squared errors of both statistics, or `gaussian_divergence`.
        slack: by how much a mean and a spread may be wrong without a loss, (2, K), see `errors_of_noise`; the loss of a
            larger error is that of the excess.
    """
    mean, second = measured.select(-2, 0), spread_of(variance_of(measured), spread)
    stored_mean, stored_second = layers.mean, spread_of(layers.variance, spread)
    if slack is not None:
        # The measured statistics may lie anywhere within the slack: take the values nearest to the stored ones.
        mean = stored_mean.clamp(mean - slack[0], mean + slack[0])
        second = stored_second.clamp(second - slack[1], second + slack[1])
    if distance == "gaussian":
        each = gaussian_divergence(stored_mean, stored_second, mean, second)
    else:
        each = (mean - stored_mean).square() + (second - stored_second).square()
    return (each * weights).sum(-1)


def gaussian_divergence(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a normal distribution from another one, elementwise."""
    ratio, shift = std / other_std, (mean - other_mean) / other_std
    return (ratio.square() + shift.square() - 1) / 2 - ratio.log()


def errors_of_noise(measured: Tensor, layers: StoredStatistics, spread: Spread, quantile: float) -> Tensor:
    """Return a quantile over the channels of each layer of the errors of mean and spread, (2, K), of moments (2, K)."""
    mean_error = measured[0] - layers.mean
    spread_error = spread_of(variance_of(measured), spread) - spread_of(layers.variance, spread)
    parts = layers.per_layer(torch.stack([mean_error, spread_error]).abs())
    return torch.cat([part.quantile(quantile, dim=1, keepdim=True).expand_as(part) for part in parts], dim=1)


def batch_norm_norms(measured: Tensor, layers: StoredStatistics) -> Tensor:
    """Return the distances of moments (..., 2, K) from the running mean and variance of each layer, (..., L).

    The distance is the sum of both Euclidean norms, not squared, as in DeepInversion and GenQ.
    """
    mean, variance = measured.select(-2, 0), variance_of(measured)
    errors = torch.stack([mean - layers.mean, variance - layers.variance], dim=-2)
    return torch.stack([error.norm(dim=-1).sum(-1) for error in layers.per_layer(errors)], dim=-1)


def output_range(output: Any) -> Tensor:
    """Return the difference between the largest and the smallest output value of every image, (N,): DGH, Eq. 6.

    For a network with several outputs, such as a detector, return (T, N): the ranges of each tensor, in the order of
    the outputs. Outputs that are not numbers for each image (None, indices, a loss) are ignored.

    Raises:
        ValueError: no output remains.
    """
    leaves = tree_leaves(output)
    flat = [
        leaf.flatten(1) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1
    ]
    if not flat:
        found = ", ".join(
            f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else str(leaf) for leaf in leaves
        )
        raise ValueError(f"the network must return logits (N, K) or several tensors (N, ...), it returned {found}")
    ranges = [values.amax(1) - values.amin(1) for values in flat]
    return ranges[0] if len(ranges) == 1 else torch.stack(ranges)


def slack_penalty(last_moments: Tensor, layers: StoredStatistics, slack: float, spread: Spread) -> Tensor:
    """Return by how much every image (N, 2, C) exceeds the slack at the last batch norm, (N,): DGH, Eq. 7.

    Mean and spread are penalised separately, each if its squared distance exceeds delta = `slack` times the sum of
    the layer's running variances. This unit depends on the network, and real images lie below 1.
    """
    mean, variance = (layers.per_layer(values)[-1] for values in (layers.mean, layers.variance))
    delta = slack * variance.sum()
    mean_error = (last_moments[:, 0] - mean).square().sum(1)
    spread_error = (spread_of(variance_of(last_moments), spread) - spread_of(variance, spread)).square().sum(1)
    return (mean_error - delta).clamp_min(0) + (spread_error - delta).clamp_min(0)
