"""What the benchmarks share: their options, a clock, networks, images, and records.

What is compared runs in turns, in one process or beside it, so that other load on the machine meets all alike. What
counts is processor time on one thread and, of the ratios of the rounds, the median.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.running.allocator import keep_freed_memory
from dghlib.storage.records import provenance, write_json

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"


@dataclass(frozen=True)
class Seconds:
    """What a run took: time of the processor, of all its threads, and by the clock on the wall."""

    processor: float
    wall: float


@dataclass(frozen=True)
class Spread:
    """The median of several values, and how far they lie apart."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"


def parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--smoke", action="store_true", help="the smallest size, in seconds: shows that it runs")
    options.add_argument("--save", action="store_true", help=f"write a record to {'/'.join(RESULTS.parts[-2:])}")
    options.add_argument(
        "--default-allocator", action="store_true", help="let the C library give back what tensors free"
    )
    return options


def prepare(options: argparse.Namespace) -> None:
    """Let this process use one thread, and memory as `dgh` does."""
    torch.set_num_threads(1)
    if not options.default_allocator:
        keep_freed_memory()


def timed(run: Callable[[], object]) -> Seconds:
    """Return what a run took."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.process_time() - processor, time.perf_counter() - wall)


def settled(device: str) -> None:
    """Wait until a device has done what it was given; a processor has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def network(name: str, image_size: int) -> FloatModel:
    """Return a network of torchvision's with random weights, its batch norms trained on a few of `smooth_images`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.get_model(name)
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = 1.0
        with torch.no_grad():
            net.train()(smooth_images(8, image_size))
    shape = (3, image_size, image_size)
    return FloatModel(name=name, net=net.eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)


def smooth_images(count: int, size: int) -> Tensor:
    """Return coloured noise (count, 3, size, size) with neighbours alike, always the same."""
    coarse = torch.randn(count, 3, -(-size // 8), -(-size // 8), generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size, mode="bilinear")


def save(options: argparse.Namespace, name: str, inputs: dict[str, Any], outputs: Any, seconds: float) -> None:
    """Write a record, if it was asked for."""
    if options.save:
        kept = not options.default_allocator
        path = RESULTS / f"{name}{'' if kept else '_default_allocator'}.json"
        inputs = {"benchmark": name, "keep_freed_memory": kept, **inputs}
        write_json(path, {"inputs": inputs, "outputs": outputs, "provenance": provenance(seconds)})
        print(path)
