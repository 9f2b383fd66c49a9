"""A generator network that learns from a trained network to make images of classes, and of mixtures of classes.

It is trained alone for the images of Qimera, and together with a quantized network in GDFQ's family.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dghlib.running.batchnorm import StoredStatistics
from dghlib.synthesis.classes import Head, random_labels
from dghlib.synthesis.matching import batch_norm_distance, channel_weights, measure
from dghlib.synthesis.networks import ClassNetwork, mixtures_of

Embeddings = Literal["random", "classifier"]


class ClassMaker:
    """A generator network during its training.

    Args:
        net, layers: the trained network, frozen, and its batch-norm statistics.
        generator: the generator network, on the same device.
        superposed: probability with which a batch has mixtures instead of single classes.
        mixed_classes: classes in a mixture.
        rate: Adam's learning rate.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: StoredStatistics,
        generator: ClassNetwork,
        *,
        superposed: float,
        mixed_classes: int,
        rate: float,
    ):
        self.net, self.layers, self.generator = net, layers, generator
        self.superposed, self.mixed_classes = superposed, mixed_classes
        self.weights = channel_weights(layers.sizes, "mean", layers.mean.device)
        self.optimizer = torch.optim.Adam(generator.parameters(), rate, betas=(0.5, 0.999))
        self.parts: dict[str, Any] = {"generator": generator, "optimizer": self.optimizer}

    def batch(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `made` images; a coin decides whether they are mixtures."""
        superposed = torch.rand((), generator=draws).item() < self.superposed
        return self.made(count, superposed, draws)

    def made(self, count: int, superposed: bool, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `count` images, mixtures or single classes, and their class shares, (count, num_classes)."""
        network, device = self.generator, self.layers.mean.device
        mixed = self.mixed_classes if superposed else 1
        classes, shares = random_mixtures(count, network.num_classes, mixed, draws)
        noise = torch.randn(*classes.shape, network.latent_size, generator=draws)
        classes, shares, noise = (values.to(device) for values in (classes, shares, noise))
        return network(classes, shares, noise), mixtures_of(classes, shares, network.num_classes)

    def judged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trained network's logits for images, and the distance of their statistics from its own."""
        measured = measure(self.net, images, self.layers)
        return measured.output, batch_norm_distance(measured.moments, self.layers, self.weights, "variance").mean()

    def learn(self, loss: Tensor) -> None:
        """Update the generator network, and nothing else that the loss depends on."""
        values = list(self.generator.parameters())
        gradients = torch.autograd.grad(loss, values, allow_unused=True)  # embeddings may have no part in images
        for value, gradient in zip(values, gradients, strict=True):
            value.grad = gradient
        self.optimizer.step()


def random_mixtures(count: int, num_classes: int, mixed: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return classes, with equal probabilities and possibly repeated, and their shares in an image, (count, mixed).

    Shares are positive and sum to 1; the share of a single class is 1.
    """
    classes = random_labels(count * mixed, num_classes, draws).view(count, mixed)
    return classes, torch.randn(count, mixed, generator=draws).softmax(1)


def first_embeddings(net: nn.Module, head: Head, kind: Embeddings, draws: torch.Generator) -> Tensor:
    """Return the initial embeddings of the classes, (num_classes, width): random, or the last layer's weights."""
    if kind == "classifier":
        return net.get_parameter(f"{head.layer}.weight").detach().cpu()
    return torch.randn(head.num_classes, head.width, generator=draws)
