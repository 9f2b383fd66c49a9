"""Seconds until DGH's images are as good as those of the Model Compression Toolkit (MCT) of DGH's authors.

Quality is measured in 2 ways, which are the same for both: the distance of the whole set's statistics from the stored
ones (DGH, Eq. 4, standard deviations, means over channels and layers), and the accuracy of the network after HPTQ
has calibrated it with the images, every tensor at 4 bits. The toolkit makes its images once. Ours are made again with
more and more steps, since the learning rates of a run depend on its length. Processor time on 1 thread.

The benchmark needs CIFAR-10's test images and ResNet-20, see `make data PROFILE=cifar10`. From the repository's root:
python -m benchmarks.dgh_quality --steps 25 50 100 200 --their-steps 300
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Seconds, timed
from benchmarks.tools import Tool, tool
from dghlib import models
from dghlib.experiments.scoring import quality
from dghlib.generators import dgh
from dghlib.models import FloatModel
from dghlib.quantizers import hptq
from dghlib.running.batchnorm import stored_statistics
from dghlib.synthesis.matching import batch_norm_distance, channel_weights, measure

NUM_IMAGES, BATCH_SIZE, EXTRA_PIXELS = 256, 128, 2
TEST_IMAGES = 2000
BITS = 4


@dataclass(frozen=True)
class Made:
    """A set of images: who made it, in how many steps and seconds, and its quality."""

    by: str
    steps: int
    seconds: Seconds
    distance: float
    top1: float


def ours(model: FloatModel, num_images: int, steps: int) -> tuple[Seconds, Tensor]:
    """Return the seconds and the images of our generator."""
    settings = {"num_images": num_images, "batch_size": min(num_images, BATCH_SIZE), "extra_pixels": EXTRA_PIXELS}
    config = dataclasses.replace(dgh.PRESETS["default"], **settings, steps=steps)
    images: list[Tensor] = []
    seconds = timed(lambda: images.append(dgh.generate(model, config)))
    return seconds, images[0]


def theirs(toolkit: Tool, model: FloatModel, num_images: int, steps: int) -> tuple[Seconds, Tensor]:
    """Return the seconds and the images of the toolkit's generator."""
    settings = {"num_images": num_images, "data_gen_batch_size": min(num_images, BATCH_SIZE), "n_iter": steps}
    size = model.image_shape[1]
    seconds, _ = toolkit.ask(do="generate", image_size=size, extra_pixels=EXTRA_PIXELS, file="made.pt", **settings)
    return seconds, torch.load(toolkit.folder / "made.pt")


@torch.no_grad()
def distance(model: FloatModel, images: Tensor) -> float:
    """Return the distance of the statistics of all images together from the stored ones."""
    layers = stored_statistics(model.net, model.image_shape)
    weights = channel_weights(layers.sizes, "mean", torch.device("cpu"))
    return float(batch_norm_distance(measure(model.net, images, layers).moments[0], layers, weights, "std"))


def rated(by: str, steps: int, made: tuple[Seconds, Tensor], model: FloatModel, test_images: int) -> Made:
    """Return a set of images with its quality."""
    seconds, images = made
    quantized = hptq.quantize(model, images, hptq.Config(weight_bits=BITS, activation_bits=BITS))
    top1 = quality("cifar10", test_images, model, quantized)["top1"]
    result = Made(by=by, steps=steps, seconds=seconds, distance=distance(model, images), top1=top1)
    print(
        f"{by:8}{steps:8}{seconds.processor:12.1f}{seconds.wall:12.1f}{result.distance:12.4f}{top1:10.2f}", flush=True
    )
    return result


def times_fewer(sets: Sequence[Made], measure_of_quality: str) -> float | None:
    """Return the ratio of the toolkit's processor time to ours at equal quality; None if ours is never as good."""
    sign = -1 if measure_of_quality == "distance" else 1
    best = next(made for made in sets if made.by == "MCT")
    enough = sign * getattr(best, measure_of_quality)
    good = [made for made in sets if made.by == "ours" and sign * getattr(made, measure_of_quality) >= enough]
    return best.seconds.processor / min(made.seconds.processor for made in good) if good else None


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=[25, 50, 100, 200], help="numbers of steps of our runs")
    parser.add_argument("--their-steps", type=int, default=300)
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    name, steps, their_steps, num_images = "cifar10_resnet20", options.steps, options.their_steps, NUM_IMAGES
    test_images = TEST_IMAGES
    if options.smoke:
        steps, their_steps, num_images, test_images = [1], 1, 8, 50
    model = models.load(name)
    print(f"{'by':8}{'steps':>8}{'processor s':>12}{'wall s':>12}{'distance':>12}{'top-1':>10}")
    with tool("mct", fx.symbolic_trace(model.net)) as toolkit:  # as a graph, it is of no class of ours
        made = theirs(toolkit, model, num_images, their_steps)
        sets = [rated("MCT", their_steps, made, model, test_images)]
    for count in tqdm(steps, desc=name):
        sets.append(rated("ours", count, ours(model, num_images, count), model, test_images))
    fewer = {measure_of_quality: times_fewer(sets, measure_of_quality) for measure_of_quality in ("distance", "top1")}
    print("as good in so many times fewer seconds:", fewer)
    inputs = {"model": name, "num_images": num_images, "batch_size": BATCH_SIZE, "extra_pixels": EXTRA_PIXELS}
    inputs |= {"test_images": test_images, "bits": BITS, "mct": toolkit.versions}
    measuring.save(options, "dgh_quality", inputs, {"sets": sets, "times_fewer": fewer}, time.perf_counter() - start)


if __name__ == "__main__":
    main()
