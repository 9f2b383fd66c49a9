"""The cost of an iteration of reconstruction, compared with passes of the bare block.

Bare is a forward pass of the same block in float, with folded batch norms, and a backward pass to its weights, with the
same error as loss. The loop also draws minibatches, rounds weights and activations as they are learned, and steps
the optimizer. Both take turns in one process, on 1 thread; every turn of the loop starts with a new optimizer.

From the repository's root: python -m benchmarks.reconstruction
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Spread, timed
from dghlib import models
from dghlib.models import FloatModel
from dghlib.quantizers import QUANTIZERS, reconstruction
from dghlib.quantizers.reconstruction import Sweep, UnitError, _Reconstruction, learn
from dghlib.quantizers.starting import nearest
from dghlib.quantizers.unit_data import unit_error
from dghlib.quantizers.units import Unit, piece_of
from dghlib.storage.checkpoints import Checkpoint

METHODS = ("brecq", "qdrop", "genie_m")
ITERATIONS = 5  # of a turn; the penalty counts in 4 of them, the same share as in a long run
SEARCHES = {"weight_search": "shrink_80", "activation_search": "shrink_80"}  # the fastest


@dataclass(frozen=True)
class Cost:
    """Processor seconds of 1 000 iterations on a block, bare and learned, medians; and the ratios of the rounds."""

    method: str
    learned: str
    block: str
    bare: float
    loop: float
    ratio: Spread


class _Measured(_Reconstruction):
    """A reconstruction that runs its loop on every unit several times, in turns with the bare block."""

    def measure(self, blocks: Collection[str], rounds: int) -> list[Cost]:
        self.units = [unit for unit in self.units if unit.name in blocks]
        self.rounds, self.costs = rounds, list[Cost]()
        self.run()
        return self.costs

    def _teach(self, unit: Unit, sweep: Sweep, bar: tqdm) -> list[UnitError]:
        bare_run = self._bare_run(unit, sweep)

        def in_turns(*arguments: object) -> None:
            bare_run()
            turns = [
                (timed(bare_run).processor, timed(lambda: learn(*arguments)).processor)  # type: ignore[arg-type]
                for _ in range(self.rounds)
            ]
            bare, loop = (Spread.of(times).median / ITERATIONS * 1000 for times in zip(*turns, strict=True))
            ratio = Spread.of([loop / bare for bare, loop in turns])
            self.costs.append(Cost(self.student.about["method"], sweep.learned, unit.name, bare, loop, ratio))

        with patch.object(reconstruction, "learn", in_turns):
            return super()._teach(unit, sweep, bar)

    def _bare_run(self, unit: Unit, sweep: Sweep) -> Callable[[], None]:
        """Return a run that passes the float block forward and backward as often as the loop does in a turn."""
        nodes = {node.name: node for node in self.teacher.graph.nodes}
        piece = piece_of(self.teacher, nodes[unit.entry], nodes[unit.exit])
        weights = [parameter.requires_grad_() for parameter in piece.parameters() if parameter.ndim > 1]
        inputs = self.float_front.at(nodes[unit.entry])
        targets = torch.zeros_like(piece(inputs).detach())

        def run() -> None:
            for _ in range(ITERATIONS):
                torch.autograd.grad(unit_error(piece(inputs), targets, sweep.power), weights)

        return run


def costs(model: FloatModel, images: Tensor, blocks: Collection[str], rounds: int) -> Iterator[Cost]:
    """Yield the cost of the blocks with every method, for every sweep of the method; all images are one batch."""
    for method in tqdm(METHODS, desc=model.name):
        config = QUANTIZERS[method].Config(iterations=ITERATIONS, batch_size=len(images), **SEARCHES)
        config = replace(config, step_iterations=min(config.step_iterations, ITERATIONS))
        student = nearest(model, images, config, {"method": method})
        work = _Measured(model, student, images, config, Checkpoint(None, ""))
        yield from work.measure(blocks, rounds)


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parser(__doc__).parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    if options.smoke:
        model, blocks, images, rounds = models.load("shapes_residual"), ["stages.3.1"], torch.randn(2, 3, 32, 32), 1
    else:
        model, blocks, rounds = measuring.network("resnet18", 224), ["layer1.1", "layer4.1"], 7
        images = measuring.smooth_images(32, 224)
    print(
        f"{'method':10}{'learned':20}{'block':12}{'bare s':>8}{'loop s':>8}  of bare (processor s per 1 000 iterations)"
    )
    found = []
    for cost in costs(model, images, blocks, rounds):
        print(
            f"{cost.method:10}{cost.learned:20}{cost.block:12}{cost.bare:8.0f}{cost.loop:8.0f}  {cost.ratio}",
            flush=True,
        )
        found.append(cost)
    inputs = {"model": model.name, "images": list(images.shape), "iterations": ITERATIONS, "rounds": rounds}
    measuring.save(options, "reconstruction", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
