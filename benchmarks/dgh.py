"""How fast DGH makes images, beside the bare network and the Model Compression Toolkit (MCT) of DGH's authors.

The unit is images x steps per second, of whole generation steps: preprocessing, both losses, optimizer. The bare
network is the unmodified network in channels_last, which passes each image forward and back to the input. Our runs with
a second forward pass (Algorithm 1 of the paper) are compared with the bare network with another forward pass. Our
compiled runs are timed after compilation. All runs use 1 thread. Those of this process take turns, step by step. Then
the toolkit runs, unmodified and with weights that its caller froze; the time of its steps is the difference of a run of
1 step and a longer run.

Some cells take minutes per round; the default ones take half an hour in all. From the repository's root, after
`make bench` has made MCT's environment, all cells, which take hours:
python -m benchmarks.dgh --networks resnet18 resnet50 mobilenet_v2 --sizes 64 112 224
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Seconds, Spread, settled, timed
from benchmarks.tools import Tool, tool
from dghlib.generators import dgh
from dghlib.models import FloatModel

CELLS = (  # the others are optional
    *itertools.product(("resnet18", "mobilenet_v2", "resnet50"), (64, 112)),
    ("resnet18", 224),
)
BATCH_SIZE, BATCHES = 32, 2
CEILINGS = {"ours": "bare", "ours, compiled": "bare", "ours, second forward": "bare and forward"}


@dataclass(frozen=True)
class Speed:
    """The speed of one way on one network: images x steps per second, and ratios to the bare network and to MCT."""

    network: str
    image_size: int
    way: str
    per_processor_second: Spread
    per_wall_second: Spread
    of_bare: Spread | None
    times_mct: Spread | None  # processor time
    times_mct_wall: Spread | None
    times_frozen_mct: Spread | None  # processor time


def bare_run(
    model: FloatModel, batch_size: int, *, forward: bool = False, batches: int = BATCHES, device: str = "cpu"
) -> Callable[[int], Seconds]:
    """Return a run that passes every batch forward and back to the input, and with `forward`, forward once more."""
    net = copy.deepcopy(model.net).requires_grad_(False).to(device, memory_format=torch.channels_last)
    images = torch.randn(batch_size, *model.image_shape, device=device)
    leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_()

    def passes(count: int) -> None:
        for _ in range(count):
            torch.autograd.grad(net(leaf).sum(), leaf)
            if forward:
                with torch.no_grad():
                    net(leaf)
        settled(device)

    return lambda steps: timed(lambda: passes(steps * batches))


def our_run(
    model: FloatModel, batch_size: int, *, second_forward: bool = False, compiled: bool = False
) -> Callable[[int], Seconds]:
    """Return a run of our generator, which continues from its last state."""
    config = dgh.Config(num_images=BATCHES * batch_size, batch_size=batch_size, second_forward=second_forward)
    generation = dgh._Run(model, config, "cpu")
    generation.begin()
    if compiled:
        generation.compile()

    def steps(count: int) -> None:
        for _ in range(count):
            generation.advance()

    return lambda count: timed(lambda: steps(count))


def their_run(theirs: Tool, model: FloatModel, batch_size: int, frozen: bool) -> Callable[[int], Seconds]:
    """Return a run of the toolkit's generator with its default settings."""
    settings = {"num_images": BATCHES * batch_size, "data_gen_batch_size": batch_size, "frozen": frozen}
    size = model.image_shape[1]
    return lambda steps: theirs.ask(do="generate", n_iter=steps, image_size=size, **settings)[0]


def step_times(
    here: dict[str, Callable[[int], Seconds]], toolkit: dict[str, Callable[[int], Seconds]], image_size: int
) -> dict[str, Seconds]:
    """Return the seconds of a step of each run: the mean of a few steps, of more if images are small."""
    steps = max(2, 256 // image_size)
    taken: dict[str, list[Seconds]] = {name: [] for name in here}
    for _ in range(steps):
        for name, run in here.items():
            taken[name].append(run(1))
    for name, run in toolkit.items():
        less, more = run(1), run(1 + steps)
        taken[name] = [more, Seconds(-less.processor, -less.wall)]
    return {
        name: Seconds(sum(each.processor for each in parts) / steps, sum(each.wall for each in parts) / steps)
        for name, parts in taken.items()
    }


def speeds(model: FloatModel, theirs: Tool, batch_size: int, rounds: int, *, compiled: bool = True) -> Iterator[Speed]:
    """Yield the speed of every way on a network; `compiled` or not, since compilation takes 1 to 2 minutes."""
    here = {
        "bare": bare_run(model, batch_size),
        "bare and forward": bare_run(model, batch_size, forward=True),
        "ours": our_run(model, batch_size),
        "ours, second forward": our_run(model, batch_size, second_forward=True),
    }
    if compiled:
        torch.compiler.reset()  # torch compiles only a few networks per process
        here["ours, compiled"] = our_run(model, batch_size, compiled=True)
    toolkit = {
        "MCT": their_run(theirs, model, batch_size, False),
        "MCT, frozen weights": their_run(theirs, model, batch_size, True),
    }
    for run in here.values():
        run(1)  # without the extra time of the first step
    bar = tqdm(range(rounds), desc=f"{model.name}, {model.image_shape[1]} pixels")
    turns = [step_times(here, toolkit, model.image_shape[1]) for _ in bar]
    images = BATCHES * batch_size
    for way in (*here, *toolkit):
        ratio = partial(_ratio, turns, way)
        ours = way in CEILINGS
        yield Speed(
            network=model.name,
            image_size=model.image_shape[1],
            way=way,
            per_processor_second=Spread.of([images / turn[way].processor for turn in turns]),
            per_wall_second=Spread.of([images / turn[way].wall for turn in turns]),
            of_bare=ratio(CEILINGS[way]) if ours else None,
            times_mct=ratio("MCT") if ours else None,
            times_mct_wall=ratio("MCT", clock="wall") if ours else None,
            times_frozen_mct=ratio("MCT, frozen weights") if ours else None,
        )


def _ratio(turns: list[dict[str, Seconds]], way: str, other: str, clock: str = "processor") -> Spread:
    """Return how many times as fast as another way this one is, over the rounds."""
    return Spread.of([getattr(turn[other], clock) / getattr(turn[way], clock) for turn in turns])


def show(speed: Speed) -> None:
    name = f"{speed.network}, {speed.image_size} px"
    cells = (speed.per_processor_second, speed.of_bare, speed.times_mct, speed.times_mct_wall, speed.times_frozen_mct)
    print(f"{name:22}{speed.way:24}" + "".join(f"{cell or '':<24}" for cell in map(str, (c or "" for c in cells))))


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=[], help="networks of torchvision, each with all of --sizes")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64], help="sizes of the images in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    cells = list(itertools.product(options.networks, options.sizes)) or CELLS
    batch_size, rounds = BATCH_SIZE, options.rounds
    if options.smoke:
        cells, batch_size, rounds = [("mobilenet_v2", 32)], 2, 1
    columns = ("images x steps / s", "of bare", "times MCT", "by the wall clock", "times MCT, frozen")
    print(f"{'network':22}{'way':24}" + "".join(f"{column:24}" for column in columns))
    found: list[Speed] = []
    for done, (name, size) in enumerate(cells, start=1):
        model = measuring.network(name, size)
        with tool("mct", model.net) as theirs:
            for speed in speeds(model, theirs, batch_size, rounds, compiled=not options.smoke):
                show(speed)
                found.append(speed)
        inputs = {"cells": cells[:done], "batch_size": batch_size, "rounds": rounds, "mct": theirs.versions}
        # after every cell, so that a stopped run keeps its results
        measuring.save(options, "dgh", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
