"""Accuracy of a classifier."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


def top1(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    num_classes: int | None = None,
    total: int | None = None,
    progress: bool = False,
) -> float:
    """Return the share of images whose largest logit is that of their label, in percent.

    The network runs in eval mode, on the device of its parameters and in their precision; afterwards every module is in
    its previous mode. Of equal logits the first counts.

    Args:
        net: maps images (n, C, H, W) to logits (n, K).
        batches: yields images, and labels (n,) from 0 to K - 1.
        num_classes: number of classes of the labels, if known; if the number of logits differs, the labels are not
            those of the network.
        total: the number of batches, for the progress bar.
        progress: whether to show the bar.

    Raises:
        TypeError: the output of the network is not a tensor.
        ValueError: no images, shapes that do not fit, labels without a logit, or logits that are NaN or infinite.
    """
    device, dtype = next(chain(net.parameters(), net.buffers()), torch.empty(0)).device, _dtype_of(net)
    correct = seen = 0
    with _eval_mode(net), torch.inference_mode():
        for images, labels in tqdm(batches, desc="top-1", total=total, unit="batch", disable=not progress, leave=False):
            logits = net(images.to(device, dtype))
            _check(logits, labels, num_classes)
            logits = logits.cpu()
            correct += int((logits.argmax(dim=1) == labels).sum())
            seen += len(labels)
    if seen == 0:
        raise ValueError("top1 needs at least one image, got none (an iterator of batches serves once)")
    return 100 * correct / seen


def agreement(net: nn.Module, other: nn.Module, images: Tensor, *, batch_size: int = 32) -> float:
    """Return the share of images for which 2 classifiers predict the same class, in percent.

    For a quantized network and its float network this needs no labels; on its calibration images the result is too
    high. The networks may be on different devices and have different precision; see `top1` for the rest.

    Args:
        net: the classifier whose predictions serve as labels.
        other: the classifier that is compared with it.
        images: (N, C, H, W), normalised.
        batch_size: images that pass at once.
    """
    device, dtype = next(chain(net.parameters(), net.buffers()), torch.empty(0)).device, _dtype_of(net)
    batches = images.split(batch_size)
    with _eval_mode(net), torch.inference_mode():
        labels = [net(batch.to(device, dtype)).argmax(dim=1).cpu() for batch in batches]
    return top1(other, zip(batches, labels, strict=True))


def _dtype_of(net: nn.Module) -> torch.dtype:
    """Return the precision of a network: that of its first floating-point parameter."""
    return next((each.dtype for each in net.parameters() if each.is_floating_point()), torch.float32)


def _check(logits: Any, labels: Tensor, num_classes: int | None) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"expected a network that returns logits (n, K), got one that returns a {type(logits).__name__}"
        )
    if labels.ndim != 1:
        raise ValueError(f"expected labels of shape (n,), the number of each image's class, got {tuple(labels.shape)}")
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(f"expected logits of shape ({len(labels)}, K), got {tuple(logits.shape)}")
    if num_classes not in (None, logits.shape[1]):
        raise ValueError(
            f"the images have {num_classes} classes, but the network has {logits.shape[1]}: the labels are those of "
            "other classes. In folders, a class is the index of its folder in alphabetic order, so every class needs a "
            "folder; an .npz file has the index of every label"
        )
    if wrong := int((~logits.isfinite()).any(dim=1).sum()):
        raise ValueError(f"logits of {wrong} of the {len(labels)} images in a batch are NaN or infinite")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(
            f"labels must be 0 to {logits.shape[1] - 1} for {logits.shape[1]} logits, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )


@contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and afterwards back into its previous mode."""
    training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
