"""RAdam for images of which only a part is updated at a time.

Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (2020), algorithm 2; the results are
those of `torch.optim.RAdam`, with half as many passes over the images, and the averages are plain tensors, which may
be stored anywhere.
"""

from math import sqrt

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@torch.no_grad()
def move(images: Tensor, gradient: Tensor, mean: Tensor, mean_square: Tensor, step: int, learning_rate: float) -> None:
    """Take a step along the negative gradient, in place.

    `mean` and `mean_square` are running averages of the gradients and of their squares, zero before the first step of
    these images, for which `step` is 1.
    """
    fading, fading_square = BETAS
    mean.lerp_(gradient, 1 - fading)
    mean_square.mul_(fading_square).addcmul_(gradient, gradient, value=1 - fading_square)
    rate = learning_rate / (1 - fading**step)
    rectification = _rectification(step)
    if rectification is None:
        images.add_(mean, alpha=-rate)
    else:
        rate *= rectification * sqrt(1 - fading_square**step)
        images.addcdiv_(mean, mean_square.sqrt().add_(EPSILON), value=-rate)


def _rectification(step: int) -> float | None:
    """Return the correction for the variance of the adaptive rate, or None while it is not tractable."""
    power = BETAS[1] ** step
    longest = 2 / (1 - BETAS[1]) - 1
    length = longest - 2 * step * power / (1 - power)
    if length <= 5:
        return None
    return sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
