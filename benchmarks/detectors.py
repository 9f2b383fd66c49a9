"""The cost of making an image for each of COCO's detectors, and of quantizing the detector, at full size.

For each detector, 1 image of the size that the detector takes, and the times of: a forward pass of backbone, neck and
head; 1 step of DGH with all that precedes and follows it; HPTQ with the image; and a forward pass of the quantized
detector. If the public weights are not in the data directory, random weights are used: this changes no shape, and
hardly the times.

From the repository's root: python -m benchmarks.detectors
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Seconds
from dghlib import models
from dghlib.generators import dgh
from dghlib.models import FloatModel, coco
from dghlib.quantizers import hptq
from dghlib.storage.assets import MissingAsset

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """The times of one detector, and the number of its layers and tensors that were quantized."""

    model: str
    weights: str
    image_shape: tuple[int, ...]
    forward: Seconds
    generation: Seconds
    quantization: Seconds
    quantized_forward: Seconds
    quantized_layers: int
    quantized_tensors: int


def detector(name: str) -> tuple[FloatModel, str]:
    """Return one of COCO's detectors, with public weights if they are there, else random ones; and which they are."""
    try:
        return models.load(name), "public"
    except MissingAsset:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return coco.as_model(name, coco.BUILDERS[name]()), "random"


def cost(name: str, image_shape: tuple[int, int, int] | None = None) -> Cost:
    """Return the costs of a detector, at another image shape if one is given.

    Raises:
        FloatingPointError: an output of the quantized detector is not finite.
    """
    model, weights = detector(name)
    model = replace(model, image_shape=image_shape or model.image_shape)
    config = dgh.Config(num_images=1, batch_size=1, steps=1)
    with torch.no_grad():
        forward, _ = _timed(lambda: model.net(torch.zeros(1, *model.image_shape)))
    generation, images = _timed(lambda: dgh.generate(model, config, progress=False))
    quantization, quantized = _timed(lambda: hptq.quantize(model, images, hptq.Config()))
    with torch.no_grad():
        quantized_forward, answer = _timed(lambda: quantized(images))
    _check_finite(name, answer)
    return Cost(
        model=name,
        weights=weights,
        image_shape=model.image_shape,
        forward=forward,
        generation=generation,
        quantization=quantization,
        quantized_forward=quantized_forward,
        quantized_layers=len(quantized.weight_quantizers()),
        quantized_tensors=len(quantized.activation_quantizers()),
    )


def _timed(run: Callable[[], Result]) -> tuple[Seconds, Result]:
    """Return the seconds and the result of a run."""
    made: list[Result] = []
    return measuring.timed(lambda: made.append(run())), made[0]


def _check_finite(name: str, answer: dict[str, Tensor]) -> None:
    for output, values in answer.items():
        if not values.isfinite().all():
            raise FloatingPointError(f"{output} of the quantized {name} is not finite")


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parser(__doc__).parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    names, image_shape = (["coco_ssdlite"], (3, 64, 96)) if options.smoke else (list(coco.BUILDERS), None)
    steps = ("forward", "generation", "quantization", "quantized_forward")
    print(f"{'processor s':16}" + "".join(f"{step:>20}" for step in steps))
    found = []
    for name in tqdm(names, desc="detectors"):
        found.append(cost(name, image_shape))
        seconds = "".join(f"{getattr(found[-1], step).processor:20.2f}" for step in steps)
        print(f"{name:16}{seconds}", flush=True)
    measuring.save(options, "detectors", {"models": names}, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
