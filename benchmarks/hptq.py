"""How long HPTQ takes, beside the Model Compression Toolkit (MCT) of its authors, which searches in numpy.

Both quantize the same network in 8 bits with the same images, each in its own process, in turns, on 1 thread, with
free thresholds for weights, the toolkit's default, and with powers of 2, our default. The error of the logits,
relative to their energy, shows that both compute the same. No calibration can avoid a forward pass of all images
through the float network, the bare pass: our time is also given as a multiple of it.

From the repository's root, after `make bench` has made MCT's environment: python -m benchmarks.hptq
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Seconds, Spread
from benchmarks.tools import Tool, tool
from dghlib.models import FloatModel
from dghlib.quantizers import hptq

THRESHOLDS = ("free", "power_of_two")
# From torchvision, since the toolkit's process has none of our networks.
NETWORKS, SMALLEST, IMAGE_SIZE = ("resnet18", "mobilenet_v2"), "smallest", 224


@dataclass(frozen=True)
class Turn:
    """One run: its seconds, and the error of its logits."""

    seconds: Seconds
    error: float


@dataclass(frozen=True)
class Comparison:
    """Seconds of both and of bare passes, our speed-up over the rounds, and errors of the logits.

    Attributes:
        of_bare: our processor time as a multiple of that of the bare passes.
    """

    network: str
    weight_thresholds: str
    bare_processor: Spread
    bare_wall: Spread
    of_bare: Spread
    ours_processor: Spread
    mct_processor: Spread
    faster_processor: Spread
    ours_wall: Spread
    mct_wall: Spread
    faster_wall: Spread
    ours_error: float
    mct_error: float


def our_turn(model: FloatModel, images: Tensor, weight_thresholds: str) -> Turn:
    """Quantize the network with our HPTQ."""
    config = hptq.Config(weight_thresholds=weight_thresholds)
    made = []
    took = measuring.timed(lambda: made.append(hptq.quantize(model, images, config)))
    batch = images[: config.batch_size]
    with torch.no_grad():
        expected = model.net(batch)
        error = (made[0](batch) - expected).square().sum() / expected.square().sum()
    return Turn(took, float(error))


def their_turn(theirs: Tool, weight_thresholds: str) -> Turn:
    """Quantize the network with the toolkit."""
    seconds, error = theirs.ask(do="quantize", weight_thresholds=weight_thresholds)
    return Turn(seconds, error)


@torch.no_grad()
def bare_pass(model: FloatModel, images: Tensor) -> None:
    """Pass all images, in batches of the size that calibration uses."""
    for batch in images.split(hptq.Config().batch_size):
        model.net(batch)


def compare(model: FloatModel, images: Tensor, theirs: Tool, rounds: int) -> Iterator[Comparison]:
    """Yield the comparison for every kind of thresholds."""
    for thresholds in THRESHOLDS:
        turns = [
            (
                measuring.timed(lambda: bare_pass(model, images)),
                our_turn(model, images, thresholds),
                their_turn(theirs, thresholds),
            )
            for _ in tqdm(range(rounds), desc=f"{model.name}, {thresholds}")
        ]
        yield comparison(model.name, thresholds, turns)


def comparison(network: str, thresholds: str, turns: list[tuple[Seconds, Turn, Turn]]) -> Comparison:
    """Return the medians of the rounds, and of their ratios."""

    def times(clock: str) -> dict[str, Spread]:
        rows = [[getattr(took, clock) for took in (bare, ours.seconds, theirs.seconds)] for bare, ours, theirs in turns]
        return {
            f"bare_{clock}": Spread.of([bare for bare, _, _ in rows]),
            f"ours_{clock}": Spread.of([ours for _, ours, _ in rows]),
            f"mct_{clock}": Spread.of([theirs for _, _, theirs in rows]),
            f"faster_{clock}": Spread.of([theirs / ours for _, ours, theirs in rows]),
        }

    _, ours, theirs = turns[-1]
    return Comparison(
        network=network,
        of_bare=Spread.of([ours.seconds.processor / bare.processor for bare, ours, _ in turns]),
        weight_thresholds=thresholds,
        **times("processor"),
        **times("wall"),
        ours_error=ours.error,
        mct_error=theirs.error,
    )


def smallest() -> FloatModel:
    """Return a network of 2 layers."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(8, 5))
    return FloatModel(name=SMALLEST, net=net.eval(), image_shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def show(result: Comparison) -> None:
    print(f"{result.network}, thresholds of weights: {result.weight_thresholds}; ours of bare passes: {result.of_bare}")
    print(f"  {'':12}{'bare pass s':28}{'ours s':28}{'MCT s':28}times faster")
    for clock in ("processor", "wall"):
        row = "".join(f"{getattr(result, f'{who}_{clock}')!s:28}" for who in ("bare", "ours", "mct", "faster"))
        print(f"  {clock:12}{row}")
    print(f"  {'error':40}{result.ours_error:<28.2e}{result.mct_error:<28.2e}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parser(__doc__).parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    names, count, rounds = (NETWORKS, 64, 3) if not options.smoke else ((SMALLEST,), 4, 1)
    found: list[Comparison] = []
    for name in names:
        model = smallest() if name == SMALLEST else measuring.network(name, IMAGE_SIZE)
        images = measuring.smooth_images(count, model.image_shape[1])
        with tool("mct", model.net, images) as theirs:
            for result in compare(model, images, theirs, rounds):
                show(result)
                found.append(result)
        inputs = {"networks": names, "images": list(images.shape), "rounds": rounds, "mct": theirs.versions}
        # after every network, so that a stopped run keeps its results
        measuring.save(options, "hptq", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
