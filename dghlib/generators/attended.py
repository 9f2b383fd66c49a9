"""The common part of the methods for vision transformers: checks of their settings, and the run over batches."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dghlib.choices import check_at_least, check_between, check_types
from dghlib.generators.attention import open_attention
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.tasks import ImageTask, run_tasks
from dghlib.images import clip_straight_through
from dghlib.models import FloatModel
from dghlib.running.batchnorm import check_finite, working_copy
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.synthesis.classes import labels_of, number_of_classes
from dghlib.synthesis.space import Device, brought_over, working_twin


class NoAttention(ValueError):
    """The network has no attention between patches, from which the images would be made."""


def check_settings(config: Any, *not_negative: str) -> None:
    """Raise a TypeError or ValueError for an invalid setting of a Config."""
    check_types(config)
    for name in ("num_images", "batch_size", "steps"):
        check_at_least(1, name, getattr(config, name))
    if config.class_tokens is not None:
        check_at_least(0, "class_tokens", config.class_tokens)
    for name in ("learning_rate", *not_negative):
        check_between(0, math.inf, name, getattr(config, name))


def optimized(
    method: str,
    title: str,
    version: int,
    model: FloatModel,
    config: Any,
    *,
    check: Callable[[FloatModel, nn.Module, Tensor, Any], None],
    loss: Callable[[nn.Module, Any, Tensor, torch.Generator], Any],
    optimizer: Callable[[list[Tensor]], Optimizer],
    rate: Callable[[int], float],
    device: Device,
    progress: bool,
    checkpoint: Path | None,
) -> Tensor:
    """Return images (num_images, C, H, W) that start as noise and minimise a loss, each batch by itself.

    Args:
        method: its name, for streams of random numbers and checkpoints.
        title: its name for readers.
        version: of its module.
        model: the network; it is not changed.
        config: settings that `check_settings` has checked.
        check: raises `NoAttention` for a network, its working copy and an image, if the loss needs missing layers.
        loss: makes the loss of a batch from the copy, the Config, the batch's labels and a stream of random numbers;
            it counts its `calls`, which are part of a checkpoint.
        optimizer: makes the optimizer of a batch's images.
        rate: the share of the learning rate at a step.
        device: the device of the computation.
        progress: whether a progress bar is shown.
        checkpoint: the file from which a killed run continues to the same images.
    """
    own, model = model, working_twin(model)
    net = working_copy(model.net, device, model.image_shape)
    check_finite(net)
    num_classes = number_of_classes(model, net, title)
    open_attention(net)
    images = torch.randn((config.num_images, *model.image_shape), generator=stream(config.seed, method, "images"))
    check(model, net, images[:1].to(device), config)
    batches = images.split(config.batch_size)
    labels = labels_of(method, config, num_classes).split(config.batch_size)

    def start(index: int, finished: list[Tensor]) -> ImageTask:
        draws = stream(config.seed, method, "augmentation", index)
        of_batch = loss(net, config, labels[index].to(device), draws)
        task = ImageTask(
            batches[index].to(device),
            of_batch,
            optimizer,
            lambda moved: LambdaLR(moved, rate),
            draws=draws,
            keep_valid=lambda images: clip_straight_through(images, model.mean, model.std),
        )
        task.parts["calls"] = of_batch.calls
        return task

    made = run_tasks(
        start,
        count=len(batches),
        steps=config.steps,
        saved=Checkpoint(checkpoint, images_fingerprint(model, method, version, config)),
        title=f"{title} {model.name}",
        progress=progress,
    )
    return brought_over(made, model, own)
