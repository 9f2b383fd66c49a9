"""The cost of a step of fine-tuning, compared with passes of the bare networks.

Bare is a forward pass of the float network with folded batch norms, a backward pass to its weights and biases, and
a second forward pass for the teacher. A step also draws, crops and mirrors images, rounds weights and tensors, compares
outputs and updates the learned values. Both take turns in one process, on 1 thread.

From the repository's root: python -m benchmarks.fine_tuning
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Spread, timed
from dghlib import models
from dghlib.models import FloatModel
from dghlib.quantizers import QUANTIZERS
from dghlib.quantizers.fine_tuning import _FineTuning
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.starting import nearest

METHODS = ("intraq_qat", "lsq", "genq_qat", "ait", "synq")
STEPS = 3  # of a turn


@dataclass(frozen=True)
class Cost:
    """Processor seconds of 1 000 steps, bare and of the method, medians; and the ratios of the rounds."""

    method: str
    bare: float
    step: float
    ratio: Spread


def cost(model: FloatModel, images: Tensor, method: str, rounds: int) -> Cost:
    """Return the cost of a step of a method; all images are one batch."""
    bare_run, learn, turns = bare(model, images), _FineTuning._learn, list[tuple[float, float]]()

    def in_turns(tuning: _FineTuning, step: int, done: float) -> None:
        def steps() -> None:
            for _ in range(STEPS):
                learn(tuning, step, done)

        learn(tuning, step, done)
        bare_run()
        turns.extend((timed(bare_run).processor, timed(steps).processor) for _ in range(rounds))

    config = QUANTIZERS[method].Config(steps=1, batch_size=len(images), rate=1e-6)
    with patch.object(_FineTuning, "_learn", in_turns):
        start = {"start": nearest(model, images, config, {"model": model.name})} if method == "genq_qat" else {}
        QUANTIZERS[method].quantize(model, images, config, **start)
    without, stepped = (Spread.of(times).median / STEPS * 1000 for times in zip(*turns, strict=True))
    return Cost(method, without, stepped, Spread.of([step / bare for bare, step in turns]))


def bare(model: FloatModel, images: Tensor) -> Callable[[], None]:
    """Return a run that passes 2 float networks forward and one of them backward, as often as a turn has steps."""
    student, teacher = folded_graph(model), folded_graph(model)
    learned = [value.requires_grad_() for value in student.parameters()]
    images = images.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(STEPS):
            loss = (student(images) - teacher(images)).square().mean()
            torch.autograd.grad(loss, learned)

    return run


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parser(__doc__).parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    model, images = models.load("shapes_residual"), measuring.smooth_images(2 if options.smoke else 32, 32)
    rounds = 1 if options.smoke else 7
    print(f"{'method':12}{'bare s':>8}{'step s':>8}  of bare (processor s per 1 000 steps)")
    found = []
    for method in tqdm(METHODS, desc=model.name):
        found.append(cost(model, images, method, rounds))
        print(f"{method:12}{found[-1].bare:8.0f}{found[-1].step:8.0f}  {found[-1].ratio}", flush=True)
    inputs = {"model": model.name, "images": list(images.shape), "steps": STEPS, "rounds": rounds}
    measuring.save(options, "fine_tuning", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
