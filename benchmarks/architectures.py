"""How far the architectures of torchvision and timm come: traced, quantized, written to ONNX, run, equal to simulation.

Every architecture that has a batch norm gets random weights, and batch-norm statistics of one pass in train mode, at
the smallest of a few image sizes that it takes. HPTQ at 8 bits is calibrated with noise; then the file runs under
onnxruntime's default settings, and its answers are compared with the simulation's, bit for bit. Each architecture has
a process of its own, with limits of time and memory, and counts for every stage that it passes; of the stage that it
fails the message is kept.

From the repository's root: python -m benchmarks.architectures torchvision timm:mobilenet --save
"""

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from benchmarks import measuring
from dghlib.export import export_onnx, open_session
from dghlib.models import FloatModel
from dghlib.quantizers import hptq
from dghlib.quantizers.graph import folded_graph, left_in_float
from dghlib.running.allocator import keep_freed_memory

SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
STAGES = ("traced", "quantized", "exported", "ran", "equal")
SIZES = (64, 96, 128, 224, 256, 299, 384)  # pixels, the first that an architecture takes
_SECONDS, _BYTES = 300, 8 * 2**30


@dataclass(frozen=True)
class Outcome:
    """How far an architecture came.

    Attributes:
        name: with its library, `torchvision:resnet18`.
        image_size: pixels of a side.
        stages: those of STAGES that it passed, in their order; the rest follows the failure.
        failure: what the next stage said, in a line; empty if there is none.
        in_float: weights that no layer holds, which stay in float.
    """

    name: str
    image_size: int
    stages: tuple[str, ...]
    failure: str
    in_float: int


def names_of(library: str) -> list[str]:
    """Return the names of a library's classifiers of images and pixels, or of those that hold what follows a colon."""
    library, _, part = library.partition(":")
    if library == "torchvision":
        names = torchvision.models.list_models(module=torchvision.models) + SEGMENTATION
    else:
        import timm

        names = timm.list_models()
    return [f"{library}:{name}" for name in names if part in name]


def network(name: str) -> nn.Module:
    """Return an architecture with random weights, always the same."""
    library, _, architecture = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        untrained = {"weights_backbone": None} if architecture in SEGMENTATION else {}
        return torchvision.models.get_model(architecture, weights=None, **untrained)
    import timm

    return timm.create_model(architecture)


def fitted(net: nn.Module) -> int:
    """Give batch norms the statistics of noise, at the smallest size that the network takes; return it in pixels.

    Raises:
        ValueError: no size will do.
    """
    for norm in (module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
        norm.momentum = 1.0
    for size in SIZES:
        with contextlib.suppress(Exception), torch.no_grad():
            net.train()(measuring.smooth_images(8, size))
            net.eval()(measuring.smooth_images(2, size))
            return size
    raise ValueError(f"it takes images of none of the sizes {SIZES}")


def outcome(name: str) -> Outcome | None:
    """Return how far an architecture comes, in this process, or None if it has no batch norm."""
    net = network(name)
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        return None
    size = fitted(net)
    model = FloatModel(name=name, net=net.eval(), image_shape=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3)
    images = measuring.smooth_images(8, size)
    passed: list[str] = []
    in_float = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            in_float = len(left_in_float(folded_graph(model)))
            passed.append("traced")
            quantized = hptq.quantize(model, images, hptq.Config())
            passed.append("quantized")
            export_onnx(path, model, quantized)
            passed.append("exported")
            found = open_session(path, threads=1).run(None, {"images": images.numpy()})
            passed.append("ran")
            _check_equal(quantized, images, [torch.from_numpy(each) for each in found])
            passed.append("equal")
        except Exception as error:
            return Outcome(name, size, tuple(passed), f"{type(error).__name__}: {error}"[:300], in_float)
    return Outcome(name, size, tuple(passed), "", in_float)


def _check_equal(quantized: nn.Module, images: Tensor, found: list[Tensor]) -> None:
    with torch.no_grad():
        expected = tree_leaves(quantized(images))
    for got, wanted in zip(found, expected, strict=True):
        if not torch.equal(got, wanted):
            raise ValueError(f"{(got != wanted).float().mean():.1%} of the outputs differ")


def _in_a_process(name: str) -> Outcome | None:
    """Return how far an architecture comes, or None if it has no batch norm."""
    command = [sys.executable, "-m", "benchmarks.architectures", "--one", name]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, preexec_fn=_limit_memory)
    except subprocess.TimeoutExpired:
        return Outcome(name, 0, (), f"took longer than {_SECONDS} s", 0)
    if found.returncode != 0:
        return Outcome(name, 0, (), (found.stderr.strip().splitlines() or ["killed"])[-1][:300], 0)
    facts = json.loads(found.stdout.splitlines()[-1])
    return None if facts is None else Outcome(**{**facts, "stages": tuple(facts["stages"])})


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many architectures passed each stage."""
    passed = Counter(stage for each in outcomes for stage in each.stages)
    return {"with batch norm": len(outcomes)} | {stage: passed[stage] for stage in STAGES}


def main(arguments: list[str] | None = None, run: Callable[[str], Outcome | None] = _in_a_process) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("libraries", nargs="*", default=["torchvision"], help="torchvision, timm, or timm:PART_OF_NAME")
    parser.add_argument("--one", help="tell of this architecture alone, as JSON")
    options = parser.parse_args(arguments)
    measuring.prepare(options)
    keep_freed_memory()
    if options.one:
        found_one = outcome(options.one)
        print(json.dumps(found_one and asdict(found_one)))
        return
    start = time.perf_counter()
    names = [name for library in options.libraries for name in names_of(library)]
    if options.smoke:
        names = ["torchvision:shufflenet_v2_x0_5"]
    found: list[Outcome] = []
    for name in tqdm(names, desc="architectures"):
        if (each := run(name)) is not None:
            found.append(each)
            print(f"{name:45} {len(each.stages)} of {len(STAGES)}  {each.failure[:100]}", flush=True)
    print(counts(found))
    measuring.save(options, "architectures", {"libraries": options.libraries}, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
