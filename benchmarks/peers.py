"""The results of other people's tools on the same networks, images and widths, beside those of this library.

Each tool quantizes a network as its own documentation shows, in its own process and environment; if it learns, in as
many steps as ours. A copy's accuracy is that of the tool's simulation. If the tool exports a file, the file runs under
onnxruntime, and its 4-bit constants are counted. Lines of code are those that the workers mark as what a user writes.
MCT also makes DGH images of its own.

Each network with images of a source has its own record, which is written after every copy. From the repository's
root, after `make bench` has made the environments:
python -m benchmarks.peers --networks shapes_residual --sources real
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Seconds, timed
from benchmarks.tools import WORKERS, Tool, ToolFailed, tool
from dghlib import datasets, models
from dghlib.evaluation import top1
from dghlib.experiments import run
from dghlib.experiments.experiment import REAL, ImageSet
from dghlib.experiments.profiles import Budget, budget_of
from dghlib.experiments.scoring import TEST_BATCH, data_of
from dghlib.export import export_onnx, open_session
from dghlib.images import normalise
from dghlib.models import FloatModel
from dghlib.plans.parts import source_config
from dghlib.quantizers import QuantizedModel, brecq, hptq, squant
from dghlib.quantizers.reconstruction import shortened

NETWORKS = {
    "shapes_residual": "shapes",
    "shapes_bottleneck": "shapes",
    "shapes_inverted": "shapes",
    "cifar10_resnet20": "cifar10",
    "cifar10_mobilenetv2": "cifar10",
    "imagenet_efficientnet_lite0_128": "imagenet_lite",
}
WIDTHS = ((8, 8), (4, 8), (4, 4))  # bits of weights and of tensors
METHODS = {
    "mct": ("ptq", "gptq"),
    "aimet": ("adaround",),
    "onnxruntime": ("static",),
    "nncf": ("ptq",),
    "brevitas": ("gptq",),
    "quark": ("ptq",),
}
EIGHT_BITS_ALONE = ("nncf",)
OURS, OUR_METHODS = "dghlib", ("hptq", "squant", "brecq")
DGH, THEIR_DGH = "dgh", "mct_dgh"
SOURCES = (REAL, DGH, THEIR_DGH)
LIMIT = 1800  # in seconds, for a tool's process
_INT4 = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
_BEGIN, _END = "# what a user writes", "# until here"


@dataclass(frozen=True)
class File:
    """The file that a tool exported.

    Attributes:
        kilobytes: size of the file.
        four_bits: number of constants that the file stores as true 4-bit numbers, 2 in a byte.
        top1: under onnxruntime, in percent; None if it cannot run the file, or returns other shapes.
    """

    kilobytes: int
    four_bits: int
    top1: float | None
    failure: str


@dataclass(frozen=True)
class Copy:
    """A quantized network: its tool, method, widths and images, the seconds, and the result.

    Attributes:
        top1: accuracy of the tool's simulation in percent; None if there is none, and `failure` says why.
        file: None if the tool exported none.
    """

    source: str
    tool: str
    method: str
    weight_bits: int
    activation_bits: int
    top1: float | None
    seconds: Seconds | None
    file: File | None
    failure: str


@dataclass(frozen=True)
class Subject:
    """A network with its calibration images by source, and its labelled test images."""

    model: FloatModel
    images: dict[str, Tensor]
    test: Tensor
    labels: Tensor


def subject(name: str, source: str, budget: Budget) -> Subject:
    """Return a network with its images of a source."""
    model, profile = models.load(name), NETWORKS[name]
    if source == THEIR_DGH:
        images = images_by_mct(model, budget)
    else:
        wanted = ImageSet(source=source, config=source_config(source, budget, 0, name))
        images = run.Workshop(run.results_dir(), progress=True).image_set(profile, name, wanted)[0]
    data = datasets.load(data_of(profile), "test", budget.test_images, model.image_shape)
    return Subject(model, {source: images}, normalise(data.images, model.mean, model.std), data.labels)


def images_by_mct(model: FloatModel, budget: Budget) -> Tensor:
    """Return images that the toolkit makes with its default settings, in as many steps as ours."""
    settings = {"num_images": budget.num_images, "data_gen_batch_size": budget.batch_size, "n_iter": budget.steps}
    with tool("mct", traced(model)) as theirs:
        theirs.ask(do="generate", image_size=model.image_shape[1], file="made.pt", **settings)
        return torch.load(theirs.folder / "made.pt")


def traced(model: FloatModel) -> fx.GraphModule:
    """Return a network as a graph, which needs no class of this library."""
    return fx.symbolic_trace(model.net)


# Ours


def our_config(method: str, weight_bits: int, activation_bits: int, iterations: int) -> Any:
    """Return the settings of one of our methods, with every tensor quantized and this number of iterations."""
    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    if method == "brecq":
        return shortened(brecq.Config(placement="every_tensor", **bits), iterations)
    return {"hptq": hptq, "squant": squant}[method].Config(**bits)


def our_copy(of: Subject, source: str, method: str, widths: tuple[int, int], iterations: int) -> Copy:
    """Return the copy of one of our methods."""
    model, config = of.model, our_config(method, *widths, iterations)
    images, made = of.images[source], list[QuantizedModel]()
    quantize = {"hptq": hptq, "squant": squant, "brecq": brecq}[method].quantize
    seconds = timed(lambda: made.append(quantize(model, images, config)))
    with TemporaryDirectory() as folder:
        export_onnx(Path(folder) / "copy.onnx", model, made[0])
        file = file_of(Path(folder) / "copy.onnx", of)
    reached = top1(made[0], zip(of.test.split(TEST_BATCH), of.labels.split(TEST_BATCH), strict=True))
    return Copy(source, OURS, method, *widths, reached, seconds, file, "")


def as_a_user_writes(model: FloatModel, images: Tensor, path: Path) -> None:
    """Quantize a network as our documentation shows; its lines are counted like those of the tools."""
    # what a user writes
    from dghlib.export import export_onnx
    from dghlib.quantizers import brecq

    quantized = brecq.quantize(model, images, brecq.Config(weight_bits=4, activation_bits=8))
    export_onnx(path, model, quantized)
    # until here


# Theirs


def their_copies(of: Subject, source: str, name: str, iterations: int) -> Iterator[tuple[Copy, dict[str, str]]]:
    """Yield the copies of a tool, by each of its methods and at each width, with its versions.

    Each method has its own process.
    """
    for method in METHODS[name]:
        widths = list(WIDTHS[:1] if name in EIGHT_BITS_ALONE else WIDTHS)
        try:
            with tool(name, traced(of.model), of.images[source], test=of.test, limit=LIMIT) as theirs:
                export_onnx(theirs.folder / "net.onnx", of.model)
                while widths:
                    yield their_copy(of, source, theirs, name, method, widths.pop(0), iterations), theirs.versions
        except ToolFailed as error:  # its process has ended
            for each in widths:
                yield failed(source, name, method, each, error), {}


def failed(source: str, name: str, method: str, widths: tuple[int, int], error: ToolFailed) -> Copy:
    """Return the copy that says why a tool failed."""
    return Copy(source, name, method, *widths, None, None, None, str(error))


def their_copy(
    of: Subject, source: str, theirs: Tool, name: str, method: str, widths: tuple[int, int], iterations: int
) -> Copy:
    """Return the copy of a tool."""
    bits = dict(zip(("weight_bits", "activation_bits"), widths, strict=True))
    try:
        seconds, told = theirs.ask(do="copy", method=method, iterations=iterations, **bits)
    except ToolFailed as error:
        return failed(source, name, method, widths, error)
    logits, path = torch.load(theirs.folder / "logits.pt"), theirs.folder / "copy.onnx"
    file = file_of(path, of) if path.exists() else None
    reached = 100 * float((logits.argmax(1) == of.labels).float().mean())
    return Copy(source, name, method, *widths, reached, seconds, file, told["export_error"])


def file_of(path: Path, of: Subject) -> File:
    """Return what a file contains, and the accuracy it reaches."""
    held = onnx.load(path)
    constants = [*held.graph.initializer, *(each.t for node in held.graph.node for each in node.attribute)]
    four_bits = sum(each.data_type in _INT4 for each in constants)
    reached, failure = None, ""
    try:
        reached = accuracy(path, of)
    except Exception as error:  # every error of the runtime is a result
        failure = f"{type(error).__name__}: {error}"[:300]
    return File(path.stat().st_size // 1024, four_bits, reached, failure)


def accuracy(path: Path, of: Subject) -> float:
    """Return the top-1 of a file in percent, under onnxruntime with its defaults."""
    session = open_session(path, threads=1)
    (asked,) = session.get_inputs()
    size = asked.shape[0] if isinstance(asked.shape[0], int) else TEST_BATCH
    right = 0
    for images, labels in zip(of.test.split(size), of.labels.split(size), strict=True):
        full = torch.cat([images, images.new_zeros(size - len(images), *images.shape[1:])])
        logits = session.run(None, {asked.name: full.numpy()})[0]
        right += int((np.argmax(logits, axis=1)[: len(labels)] == labels.numpy()).sum())
    return 100 * right / len(of.labels)


def lines_of(path: Path) -> int:
    """Return the number of lines that a file marks as what a user writes, without empty ones and comments."""
    inside, count = False, 0
    for line in path.read_text().splitlines():
        text = line.strip()
        inside = text == _BEGIN or (inside and text != _END)
        count += inside and bool(text) and not text.startswith("#")
    return count


def lines() -> dict[str, int]:
    """Return the number of lines that a user writes with each tool."""
    paths = {name: WORKERS / f"{name}_worker.py" for name in METHODS} | {OURS: Path(__file__)}
    return {name: lines_of(path) for name, path in paths.items()}


def copies(of: Subject, source: str, tools: list[str], iterations: int) -> Iterator[tuple[Copy, dict[str, str]]]:
    """Yield all copies of a network: ours, then those of every tool, with its versions."""
    for method in OUR_METHODS:
        for widths in WIDTHS:
            yield our_copy(of, source, method, widths, iterations), {}
    for name in tools if source != THEIR_DGH else ["mct"]:
        yield from their_copies(of, source, name, iterations)


def show(model: str, made: Copy) -> None:
    width = f"W{made.weight_bits}A{made.activation_bits}"
    reached = f"{made.top1:.2f}" if made.top1 is not None else "none"
    seconds = f"{made.seconds.processor:.1f} s" if made.seconds else ""
    file = f"file {made.file.top1} {made.file.failure}, {made.file.four_bits} of 4 bits" if made.file else "no file"
    name = f"{made.tool} {made.method}"
    print(f"{model:32}{made.source:12}{name:22}{width:6}{reached:>8}{seconds:>10}  {file}  {made.failure}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tools", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budget", default="quick", help="images, steps and iterations")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    networks, sources, name = options.networks, options.sources, options.budget
    if options.smoke:
        networks, sources, name = ["shapes_residual"], [REAL], "smoke"
    for network, source in tqdm(list(itertools.product(networks, sources)), desc="networks and sources"):
        measure(network, source, budget_of(NETWORKS[network], name), options)


def measure(network: str, source: str, budget: Budget, options: argparse.Namespace) -> None:
    """Measure and record all copies of a network with images of a source."""
    start = time.perf_counter()
    of = subject(network, source, budget)
    float_top1 = top1(of.model.net, zip(of.test.split(TEST_BATCH), of.labels.split(TEST_BATCH), strict=True))
    found, versions = [], dict[str, dict[str, str]]()
    inputs = {"model": network, "profile": NETWORKS[network], "source": source, "budget": dataclasses.asdict(budget)}
    for made, told in copies(of, source, options.tools, budget.iterations):
        show(network, made)
        found.append(made)
        if told:
            versions[made.tool] = told
        # after every copy, so that a stopped run keeps its results
        outputs = {"float": float_top1, "lines": lines(), "copies": found}
        facts = {**inputs, "limit": LIMIT, "tools": versions}
        measuring.save(options, f"peers_{network}_{source}", facts, outputs, time.perf_counter() - start)


if __name__ == "__main__":
    main()
