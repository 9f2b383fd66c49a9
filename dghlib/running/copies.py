"""Private copies of networks, and what is done to them first."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def private_copy(net: nn.Module) -> nn.Module:
    """Return a copy in eval mode, in float32 and without gradients.

    Raises:
        ValueError: the network cannot be copied.
    """
    try:
        net = copy.deepcopy(net)
    except Exception as error:
        raise ValueError(
            f"the network cannot be copied ({error}). Pruning and weight norm in the old style leave tensors "
            "that torch cannot copy: make them permanent first (prune.remove, remove_weight_norm)"
        ) from error
    return net.eval().float().requires_grad_(False)


def to_channels_last(net: nn.Module) -> None:
    """Lay out the weights of convolutions of maps in channels_last; `Module.to` would refuse those of volumes."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def output_for(net: nn.Module, images: Tensor) -> Any:
    """Return what a network answers to the first images (N, C, H, W) that are shown to it.

    Raises:
        ValueError: it cannot take images of this shape.
    """
    try:
        return net(images)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{type(net).__name__} cannot take images of the shape {tuple(images.shape[1:])}: is the model's "
            f"image_shape that of the images it was trained with? torch says: {error}"
        ) from error
