"""How the cost of DGH grows with the number of images: the time of a step with the batches, the memory with the images.

A step moves one batch. Its time is the difference of a run of more steps and a run of fewer, in processor time on
1 thread; the numbers of batches take turns. Memory is the peak of a process of its own, in which images beyond
`large_sets.LARGEST_IN_MEMORY` are in files.

From the repository's root: python -m benchmarks.dgh_scale --images 1024 100000
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Spread, timed
from dghlib import models
from dghlib.generators import dgh
from dghlib.models import FloatModel

NETWORK = "shapes_residual"
BATCHES = (2, 8, 32, 128, 512, 2048)
BATCH_SIZE = 4  # small, so that costs of a batch beside its passes would be visible
MOVES = 512  # least number of batches in a measurement
IMAGES = (256, 1024, 4096, 16384)
TOGETHER = 128  # images in a batch when memory is measured

PEAK = """
import resource, sys
import torch
from dghlib import models
from dghlib.running.allocator import keep_freed_memory
from dghlib.generators import dgh

torch.set_num_threads(1)
keep_freed_memory()
config = dgh.Config(num_images=int(sys.argv[2]), batch_size=int(sys.argv[3]), steps=1)
dgh.generate(models.load(sys.argv[1]), config, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@dataclass(frozen=True)
class StepCost:
    """Milliseconds of processor time of one batch's step in a set of `batches` batches."""

    batches: int
    milliseconds: Spread
    of_fewest: Spread  # as a multiple of the time in the smallest set


@dataclass(frozen=True)
class Memory:
    """The peak memory of a process, and the part of the images, both optimizer averages and the result."""

    images: int
    peak_mb: float
    values_mb: float


def step_milliseconds(model: FloatModel, batches: int, moves: int) -> float:
    """Return the time of a step of one batch, in a set of this number of batches."""
    few, many = 1, 1 + max(1, moves // batches)

    def seconds(steps: int) -> float:
        config = dgh.Config(num_images=batches * BATCH_SIZE, batch_size=BATCH_SIZE, steps=steps)
        return timed(lambda: dgh.generate(model, config, progress=False)).processor

    return 1000 * (seconds(many) - seconds(few)) / ((many - few) * batches)


def step_costs(model: FloatModel, counts: Sequence[int], moves: int, rounds: int) -> list[StepCost]:
    """Return the cost of a step for every number of batches."""
    step_milliseconds(model, counts[0], moves)  # the first run is a warm-up
    turns = [
        {batches: step_milliseconds(model, batches, moves) for batches in counts}
        for _ in tqdm(range(rounds), desc="numbers of batches")
    ]
    return [
        StepCost(
            batches=batches,
            milliseconds=Spread.of([turn[batches] for turn in turns]),
            of_fewest=Spread.of([turn[batches] / turn[counts[0]] for turn in turns]),
        )
        for batches in counts
    ]


def memory(model: FloatModel, images: int) -> Memory:
    """Return the peak memory of moving this number of images once."""
    command = [sys.executable, "-c", PEAK, NETWORK, str(images), str(TOGETHER)]
    kilobytes = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    channels, height, width = model.image_shape
    margin = 2 * round(height / 14)
    values = images * channels * (3 * (height + margin) * (width + margin) + height * width)
    return Memory(images=images, peak_mb=kilobytes * 1024 / 1e6, values_mb=4 * values / 1e6)


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="their numbers")
    parser.add_argument("--images", nargs="+", type=int, default=list(IMAGES), help="their numbers")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    batches, images, moves, rounds = options.batches, options.images, MOVES, options.rounds
    if options.smoke:
        batches, images, moves, rounds = [1, 2], [8], 2, 1
    model = models.load(NETWORK)
    steps = step_costs(model, batches, moves, rounds)
    print(f"{'batches':>8}  {'ms a step':28}of that of the fewest")
    for cost in steps:
        print(f"{cost.batches:8}  {cost.milliseconds!s:28}{cost.of_fewest}")
    peaks = [memory(model, count) for count in tqdm(images, desc="numbers of images")]
    print(f"{'images':>8}{'peak MB':>12}{'of values':>12}{'beside them':>14}")
    for peak in peaks:
        print(f"{peak.images:8}{peak.peak_mb:12.0f}{peak.values_mb:12.0f}{peak.peak_mb - peak.values_mb:14.0f}")
    inputs = {"model": NETWORK, "batch_size": BATCH_SIZE, "moves": moves, "rounds": rounds, "batches": batches}
    inputs |= {"images": images, "images_together": TOGETHER}
    measuring.save(options, "dgh_scale", inputs, {"steps": steps, "memory": peaks}, time.perf_counter() - start)


if __name__ == "__main__":
    main()
