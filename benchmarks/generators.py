"""How much of the bare networks' speed each method keeps that makes images.

Bare is a forward pass and a backward pass to the input alone through the networks that a method runs: the trained
one, with GENIE-D's and Qimera's generator network before it. "trained" adds the gradients of that network's weights,
which those two need. Everything is timed in turn, on one thread; the best of several rounds counts.

From the repository's root: python benchmarks/generators.py shapes_residual shapes_inverted --batch-size 64
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dghlib import models
from dghlib.batchnorm import working_copy
from dghlib.generators import GENERATORS
from dghlib.generators.networks import GenieNetwork, QimeraNetwork, initialised
from dghlib.models import FloatModel

METHODS = [name for name in GENERATORS if name != "noise"]
STEPS = 10


def seconds(action: Callable[[], object]) -> float:
    """Return how long `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bare_pass(net: nn.Module, shape: tuple[int, ...], generator: nn.Module | None, trained: bool) -> None:
    """Run forward and back to the input, or, where the generator network is `trained`, to its weights too."""
    leaf = torch.randn(shape).requires_grad_()
    wanted: list[Tensor] = [leaf]
    images: Tensor = leaf
    if generator is not None:
        generator.requires_grad_(trained)
        wanted += [weight for weight in generator.parameters() if trained]
        images = generator(leaf)
    for_each_output = net(images).sum()
    torch.autograd.grad(for_each_output, wanted)


def timings(model: FloatModel, batch_size: int, rounds: int) -> dict[str, float]:
    """Return the seconds of one step of each method and of what it is compared with."""
    net = working_copy(model.net, "cpu", model.image_shape)
    image_shape, num_classes = model.image_shape, net(torch.zeros(2, *model.image_shape)).shape[1]
    genie = initialised(lambda: GenieNetwork(image_shape, 256), 0)
    qimera = initialised(lambda: QimeraNetwork(image_shape, torch.randn(num_classes, 64)), 0)
    classes = torch.eye(num_classes)[torch.arange(batch_size) % num_classes]
    of_noise = _Conditioned(qimera, classes)

    def steps(action: Callable[[], object]) -> Callable[[], object]:
        return lambda: [action() for _ in range(STEPS)]

    actions = {"bare": steps(lambda: bare_pass(net, (batch_size, *image_shape), None, False))}
    for name, generator, size in (("genie_d", genie, 256), ("qimera", of_noise, 64)):
        for trained in (False, True):
            kind = f"{name} {'trained' if trained else 'bare'}"
            actions[kind] = steps(lambda g=generator, s=size, t=trained: bare_pass(net, (batch_size, s), g, t))
    for name in METHODS:
        method = GENERATORS[name]
        config = replace(method.PRESETS["default"], num_images=batch_size, batch_size=batch_size, steps=STEPS)
        actions[name] = lambda method=method, config=config: method.generate(model, config, progress=False)
    best = dict.fromkeys(actions, float("inf"))
    for _ in tqdm(range(rounds), desc=model.name):
        for name, action in actions.items():
            best[name] = min(best[name], seconds(action) / STEPS)
    return best


class _Conditioned(nn.Module):
    """Qimera's network for fixed classes: noise -> images."""

    def __init__(self, network: QimeraNetwork, classes: Tensor):
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, noise: Tensor) -> Tensor:
        return self.network(self.classes, noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["shapes_residual"], help=", ".join(models.MODELS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':28}{'method':16}{'images x steps / s':>20}{'of bare':>10}{'of trained':>12}")
    for name in options.models:
        best = timings(models.load(name), options.batch_size, options.rounds)
        for method in METHODS:
            rate, bare = options.batch_size / best[method], best.get(f"{method} bare", best["bare"])
            trained = f"{best[f'{method} trained'] / best[method]:12.2f}" if f"{method} trained" in best else ""
            print(f"{name:28}{method:16}{rate:20.0f}{bare / best[method]:10.2f}{trained}")


if __name__ == "__main__":
    main()
