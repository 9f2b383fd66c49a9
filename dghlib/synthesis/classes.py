"""The common part of methods that use classes: the number of classes, the features of the last layer, labels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.running.hooks import recorded_inputs
from dghlib.seeds import stream


class NotAClassifier(ValueError):
    """The method asks images for a class, but the network is not a classifier."""


class NoFeatures(ValueError):
    """The network does not end in a linear layer, whose input would be its features."""


@dataclass(frozen=True)
class Head:
    """The last linear layer of a classifier.

    Attributes:
        layer: its name; its input are the features.
        width: number of features.
        num_classes: number of its outputs.
    """

    layer: str
    width: int
    num_classes: int


def number_of_classes(model: FloatModel, net: nn.Module, method: str) -> int:
    """Return the number of classes of `net`, the working copy of a model's network.

    Raises:
        NotAClassifier: the model is for another task, or its output is not (N, classes).
    """
    if model.task != "classification":
        raise NotAClassifier(
            f"{method} asks images for a class, and {model.name} is for {model.task}, where an image has no single "
            "class; DGH, ZeroQ and GENIE need no classes"
        )
    with torch.no_grad():
        output = net(_probe(model, net))
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise NotAClassifier(f"{method} needs a network that returns logits (N, classes); {model.name} returns {shape}")
    return output.shape[1]


def find_head(model: FloatModel, net: nn.Module, method: str) -> Head:
    """Return the last linear layer of `net`, the working copy of a model's network, found by running it.

    Raises:
        NotAClassifier: see `number_of_classes`.
        NoFeatures: the output is not that of a linear layer.
    """
    num_classes = number_of_classes(model, net, method)
    linear = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    with torch.no_grad(), recorded_inputs(net, linear) as inputs:
        output = net(_probe(model, net))
        last = next(reversed(inputs), None)
        if last is None or not _makes(output, linear[last], inputs[last][-1]):
            raise NoFeatures(
                f"{method} measures distances between features, the input of the network's last linear layer; "
                f"{model.name} does not end in a linear layer. Wrap it so that it does, or use another method"
            )
    return Head(layer=last, width=linear[last].in_features, num_classes=num_classes)


def _makes(output: Tensor, layer: nn.Linear, given: Tensor) -> bool:
    return output.shape == (len(given), layer.out_features) and torch.allclose(layer(given), output)


def _probe(model: FloatModel, net: nn.Module) -> Tensor:
    """Return two blank images, on the device of `net`."""
    return torch.zeros(2, *model.image_shape, device=next(net.parameters()).device)


def random_labels(count: int, num_classes: int, draws: torch.Generator) -> Tensor:
    """Return (count,) random classes with equal probabilities."""
    return torch.randint(num_classes, (count,), generator=draws)


def labels_of(method: str, config: Any, num_classes: int) -> Tensor:
    """Return the class of each image in a run of a method, (num_images,)."""
    return random_labels(config.num_images, num_classes, stream(config.seed, method, "labels"))
