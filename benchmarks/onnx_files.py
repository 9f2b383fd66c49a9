"""How fast ONNX files run: 8-bit integers compared with float, under onnxruntime with its defaults, on 1 thread.

The networks are one of each family, those of torchvision and EfficientNet-Lite0 with random weights, which do not
affect the speed. The input is 1 image. The files take turns in one process, so that other load on the machine affects
all alike. Integer files come in 2 forms: with signed weights, the default, and with unsigned ones, which need no
session option on x86 processors without VNNI. The number of layers that the runtime computes in integers is counted
in the graph that it makes of each file.

From the repository's root: python -m benchmarks.onnx_files
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Spread
from dghlib import models
from dghlib.export import export_onnx
from dghlib.models import FloatModel
from dghlib.models.efficientnet import EfficientNetLite
from dghlib.quantizers import hptq

LITE = "efficientnet_lite0"
NETWORKS = (
    *(("shapes_residual", 32), ("shapes_bottleneck", 32), ("shapes_inverted", 32)),
    *(("resnet18", 224), ("mobilenet_v2", 224), (LITE, 224)),
    *(("mobilenet_v3_large", 224), ("efficientnet_b0", 224)),
)
INTEGERS = ("QLinearConv", "QGemm", "QLinearAdd")


@dataclass(frozen=True)
class Latency:
    """Processor milliseconds for 1 image of the float file and of an integer file, and their ratios.

    Attributes:
        of_float: the integer file's time as a fraction of the float file's time, over the rounds.
        integers: nodes of each kind that compute in integers; `floats`: convolutions that do not.
    """

    network: str
    weights: str
    float_ms: Spread
    integer_ms: Spread
    of_float: Spread
    integers: dict[str, int]
    floats: int


def network(name: str, image_size: int) -> FloatModel:
    """Return an embedded network, EfficientNet-Lite0, or a network of torchvision."""
    if name == LITE:
        shape, net = (3, image_size, image_size), EfficientNetLite().eval()
        return FloatModel(name=name, net=net, image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    return models.load(name) if name.startswith("shapes") else measuring.network(name, image_size)


def session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session on 1 thread, which writes its optimized graph beside the file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(path.with_suffix(".fused"))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(model: FloatModel, rounds: int) -> Iterator[Latency]:
    """Yield the latency of a network's integer files: with signed weights, and with unsigned ones."""
    images = measuring.smooth_images(2, model.image_shape[1])
    quantized = hptq.quantize(model, images, hptq.Config())
    with TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.onnx" for kind in ("float", "signed", "unsigned")}
        export_onnx(paths["float"], model)
        for kind in ("signed", "unsigned"):
            export_onnx(paths[kind], model, quantized, signed_weights=kind == "signed")
        sessions = {kind: session(path) for kind, path in paths.items()}
        feed = {"images": images[:1].numpy()}
        turns = []
        for _ in tqdm(range(rounds + 1), desc=model.name):
            took = {kind: measuring.timed(lambda run=each.run: run(None, feed)) for kind, each in sessions.items()}
            turns.append({kind: 1000 * seconds.processor for kind, seconds in took.items()})
        for kind in ("signed", "unsigned"):
            nodes = Counter(node.op_type for node in onnx.load(str(paths[kind].with_suffix(".fused"))).graph.node)
            yield latency(model.name, kind, turns[1:], nodes)


def latency(network: str, kind: str, turns: list[dict[str, float]], nodes: Counter[str]) -> Latency:
    """Return the medians of the rounds, and of their ratios."""
    return Latency(
        network=network,
        weights=kind,
        float_ms=Spread.of([turn["float"] for turn in turns]),
        integer_ms=Spread.of([turn[kind] for turn in turns]),
        of_float=Spread.of([turn[kind] / turn["float"] for turn in turns]),
        integers={name: nodes[name] for name in INTEGERS},
        floats=nodes["Conv"] + nodes["FusedConv"],
    )


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parser(__doc__).parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    chosen, rounds = (NETWORKS[:1], 2) if options.smoke else (NETWORKS, 40)
    found = []
    for name, image_size in chosen:
        for result in compare(network(name, image_size), rounds):
            print(
                f"{result.network:20}{result.weights:10}float {result.float_ms} ms, integers {result.integer_ms} ms, "
                f"{result.of_float} of float; {result.integers}, {result.floats} convolutions in float",
                flush=True,
            )
            found.append(result)
    inputs = {"networks": [list(each) for each in chosen], "rounds": rounds, "onnxruntime": onnxruntime.__version__}
    measuring.save(options, "onnx_files", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
