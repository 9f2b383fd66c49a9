"""The speed of each method that makes images, compared with the bare networks that the method runs.

Bare is a forward pass and a backward pass to the input alone through the networks of a method: the trained
network, after the generator network of GENIE-D or Qimera. "trained" adds the gradients of the generator network's
weights, which GENIE-D and Qimera need. The time of a step is the difference of a run of more steps and a run of fewer,
in processor time on 1 thread. All runs take turns, and the best of several rounds counts.

From the repository's root: python -m benchmarks.generators shapes_residual shapes_inverted --batch-size 64
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import timed
from dghlib import models
from dghlib.generators import FOR_TRANSFORMERS, GENERATORS
from dghlib.models import FloatModel
from dghlib.running.batchnorm import working_copy
from dghlib.synthesis.networks import GenieNetwork, QimeraNetwork, initialised

METHODS = [name for name in GENERATORS if name not in ("noise", "genq", *FOR_TRANSFORMERS)]
STEPS = (2, 12)  # few and many
FEWEST = (1, 2)


def bare_run(
    net: nn.Module, shape: tuple[int, ...], generator: nn.Module | None, trained: bool
) -> Callable[[int], None]:
    """Return a run forward and back to the input, and to the weights of the generator network if it is `trained`."""

    def run(steps: int) -> None:
        for _ in range(steps):
            leaf = torch.randn(shape).requires_grad_()
            wanted, images = [leaf], leaf
            if generator is not None:
                generator.requires_grad_(trained)
                wanted += [weight for weight in generator.parameters() if trained]
                images = generator(leaf)
            torch.autograd.grad(net(images).sum(), wanted)

    return run


def method_run(name: str, model: FloatModel, batch_size: int) -> Callable[[int], object]:
    """Return a run of a method on one batch."""
    method = GENERATORS[name]
    config = replace(method.PRESETS["default"], num_images=batch_size, batch_size=batch_size)
    return lambda steps: method.generate(model, replace(config, steps=steps), progress=False)


def timings(model: FloatModel, batch_size: int, rounds: int, numbers: tuple[int, int]) -> dict[str, float]:
    """Return the seconds of a step of each method and of its bare networks, from runs of few and many steps."""
    few, many = numbers
    net = working_copy(model.net, "cpu", model.image_shape)
    image_shape, num_classes = model.image_shape, net(torch.zeros(2, *model.image_shape)).shape[1]
    genie = initialised(lambda: GenieNetwork(image_shape, 256), 0)
    qimera = initialised(lambda: QimeraNetwork(image_shape, torch.randn(num_classes, 64)), 0)
    classes = torch.arange(batch_size) % num_classes
    networks = {"genie_d": (genie, 256), "qimera": (_Conditioned(qimera, classes), 64)}

    runs: dict[str, Callable[[int], object]] = {"bare": bare_run(net, (batch_size, *image_shape), None, False)}
    for name, (generator, latent_size) in networks.items():
        for kind in ("bare", "trained"):
            runs[f"{name} {kind}"] = bare_run(net, (batch_size, latent_size), generator, kind == "trained")
    runs |= {name: method_run(name, model, batch_size) for name in METHODS}
    best = {(name, steps): float("inf") for name in runs for steps in numbers}
    for _ in tqdm(range(rounds), desc=model.name):
        for name, steps in best:
            best[name, steps] = min(best[name, steps], timed(partial(runs[name], steps)).processor)
    return {name: (best[name, many] - best[name, few]) / (many - few) for name in runs}


class _Conditioned(nn.Module):
    """Qimera's network for fixed classes: noise -> images."""

    def __init__(self, network: QimeraNetwork, classes: Tensor):
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, noise: Tensor) -> Tensor:
        alone = self.classes[:, None]
        return self.network(alone, torch.ones(alone.shape), noise[:, None])


def rates(best: dict[str, float], batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield each method's images x steps per second, and their ratios to those of the bare networks."""
    for method in METHODS:
        bare, trained = best.get(f"{method} bare", best["bare"]), best.get(f"{method} trained")
        yield {
            "method": method,
            "per_second": batch_size / best[method],
            "of_bare": bare / best[method],
            "of_trained": trained and trained / best[method],
        }


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("models", nargs="*", default=["shapes_residual"], help=", ".join(models.MODELS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    batch_size, rounds, numbers = options.batch_size, options.rounds, STEPS
    if options.smoke:
        batch_size, rounds, numbers = 2, 1, FEWEST
    print(f"{'network':28}{'method':16}{'images x steps / s':>20}{'of bare':>10}{'of trained':>12}")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.models:
        found[name] = list(rates(timings(models.load(name), batch_size, rounds, numbers), batch_size))
        for row in found[name]:
            trained = f"{row['of_trained']:12.2f}" if row["of_trained"] else ""
            print(f"{name:28}{row['method']:16}{row['per_second']:20.0f}{row['of_bare']:10.2f}{trained}")
    inputs = {"models": options.models, "batch_size": batch_size, "rounds": rounds}
    measuring.save(options, "generators", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
