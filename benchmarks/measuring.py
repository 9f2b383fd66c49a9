"""What the benchmarks share: their options, a clock, networks, images, and records.

Runs that are compared take turns, in one process or in processes side by side, so that other load on the machine
affects all alike. What counts is processor time on 1 thread and, for ratios, the median over the rounds.
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
    """The seconds of a run: processor time of all threads, and wall time."""

    processor: float
    wall: float


@dataclass(frozen=True)
class Spread:
    """The median of several values, and their range."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"


def parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--smoke", action="store_true", help="the smallest sizes, to check in seconds that it runs")
    options.add_argument("--save", action="store_true", help=f"write a record to {'/'.join(RESULTS.parts[-2:])}")
    options.add_argument(
        "--default-allocator", action="store_true", help="let the C library return freed memory to the system"
    )
    return options


def prepare(options: argparse.Namespace) -> None:
    """Let this process use 1 thread, and keep freed memory as `dgh` does."""
    torch.set_num_threads(1)
    if not options.default_allocator:
        keep_freed_memory()


def timed(run: Callable[[], object]) -> Seconds:
    """Return the seconds of a run."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.process_time() - processor, time.perf_counter() - wall)


def settled(device: str) -> None:
    """Wait until a device has finished its work; the CPU always has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def network(name: str, image_size: int) -> FloatModel:
    """Return a network of torchvision with random weights, its batch norms trained on a few of `smooth_images`."""
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
    """Return smooth coloured noise (count, 3, size, size), the same in every call."""
    coarse = torch.randn(count, 3, -(-size // 8), -(-size // 8), generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size, mode="bilinear")


def save(options: argparse.Namespace, name: str, inputs: dict[str, Any], outputs: Any, seconds: float) -> None:
    """Write a record if --save asks for it."""
    if options.save:
        kept = not options.default_allocator
        path = RESULTS / f"{name}{'' if kept else '_default_allocator'}.json"
        inputs = {"benchmark": name, "keep_freed_memory": kept, **inputs}
        write_json(path, {"inputs": inputs, "outputs": outputs, "provenance": provenance(seconds)})
        print(path)
