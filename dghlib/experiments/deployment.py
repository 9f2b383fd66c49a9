"""What becomes of a quantized network outside: files, their sizes and speeds, and other people's quantizers.

Latency depends on the machine and its load, so nothing of this is kept as a record.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from dghlib import datasets
from dghlib.choices import look_up
from dghlib.evaluation import top1
from dghlib.experiments import plans, run
from dghlib.experiments.profiles import BUDGETS
from dghlib.experiments.scoring import TEST_BATCH
from dghlib.experiments.tables import TITLES
from dghlib.export import ImageReader, OnnxNetwork, export_onnx
from dghlib.models import FloatModel

_REPEATS = 100


def files(model: str = "shapes_residual", budget: str = "quick") -> pd.DataFrame:
    """Return, for a network of `shapes` in float and quantized by HPTQ with DGH images, what its ONNX file is like.

    Columns: size in kB; milliseconds per image (one at a time, one thread, median); top-1 in percent of the file and of
    the simulation; and how many of the file's logits are the simulation's to the last bit.
    """
    float_model = run.load_model(model)
    rows = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export_onnx(path, float_model)
        rows["float"] = _row(path, float_model, float_model.net, budget)
        for width in ("W8A8", "W4A4"):
            experiment = plans.table2("shapes", budget, models=[model], sources=["dgh"], bits=[width], seeds=1)[-1]
            _, quantized, _ = run.quantized(experiment)
            export_onnx(path, float_model, quantized)
            rows[f"HPTQ {width}"] = _row(path, float_model, quantized, budget)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(model)


def _row(path: Path, model: FloatModel, simulation: nn.Module, budget: str) -> dict[str, object]:
    network = OnnxNetwork(path, threads=1)
    images = next(iter(_test_batches(model, budget)))[0]
    with torch.no_grad():
        same = network(images) == simulation(images)
    return {
        "file, kB": round(path.stat().st_size / 1000),
        "ms per image": f"{1000 * _latency(network, images[:1]):.2f}",
        "top-1 of the file": f"{_top1(network, model, budget):.2f}",
        "of the simulation": f"{_top1(simulation, model, budget):.2f}",
        "logits equal": f"{100 * same.float().mean().item():.0f} %",
    }


def _latency(network: nn.Module, image: Tensor) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        network(image)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _test_batches(model: FloatModel, budget: str) -> Iterator[tuple[Tensor, Tensor]]:
    data = datasets.load("shapes", "test", look_up(BUDGETS, budget, "budget").test_images)
    return datasets.batches(data, model.mean, model.std, TEST_BATCH)


def _top1(net: nn.Module, model: FloatModel, budget: str) -> float:
    return top1(net, _test_batches(model, budget), progress=False)


def onnxruntime_alone(model: str = "shapes_residual", budget: str = "quick") -> pd.DataFrame:
    """Return top-1 in percent of a network that onnxruntime's own `quantize_static` quantized to 8 bits, by source.

    Nothing of our quantizers takes part: the float network is exported, the images go in through a calibration reader.
    """
    float_model = run.load_model(model)
    found = {}
    with TemporaryDirectory() as folder:
        exported, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "int8"))
        export_onnx(exported, float_model)
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        for source in plans.SOURCES:
            experiment = plans.table2("shapes", budget, models=[model], sources=[source], seeds=1)[-1]
            images, _ = run.Workshop(run.results_dir(), progress=True).images(experiment)
            quantize_static(
                prepared,
                quantized,
                ImageReader(images),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
            found[TITLES[source]] = f"{_top1(OnnxNetwork(quantized, threads=1), float_model, budget):.2f}"
        found[TITLES[plans.FLOAT]] = f"{_top1(float_model.net, float_model, budget):.2f}"
    return pd.DataFrame({"top-1, quantized by onnxruntime": found}).rename_axis("calibrated with")
