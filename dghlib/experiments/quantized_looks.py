"""Measurements of quantized copies of a network: their noise, their detections, their files.

A look is a function of the float network, of its copies by the title of the set of images with which each was
calibrated, of those images, and of settings of its own; it returns tables, as the looks at images do (`looks`).
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dghlib import datasets
from dghlib.experiments.experiment import FLOAT
from dghlib.experiments.looks import Images, Tables, columns
from dghlib.experiments.scoring import quality, real_images
from dghlib.models import FloatModel
from dghlib.models.detectors import detector_of
from dghlib.quantizers import QuantizedModel, noise_report, unit_errors

Copies = Mapping[str, QuantizedModel]

SURE = 0.4  # boxes with a smaller score are left out
CORNERS = ("left", "top", "right", "bottom")  # positions of the sides of a box
_REPEATS = 100


def layers(model: FloatModel, copies: Copies, sets: Images) -> Tables:
    """Return the noise and the errors of layers: the tables `noise` and `units`, see `noise_rows` and `unit_rows`."""
    noise, units = [], []
    for title, copy in copies.items():
        noise += [{"images": title, **row} for row in noise_rows(model, copy, sets[title])]
        units += [{"images": title, **row} for row in unit_rows(copy)]
    return {"noise": columns(noise), "units": columns(units)}


def noise_rows(model: FloatModel, copy: QuantizedModel, images: Tensor) -> list[dict[str, Any]]:
    """Return the noise of a copy's weights and tensors, the worst first, and each one's position from the image on."""
    order = {"weight": list(copy.weight_quantizers()), "tensor": list(copy.activation_quantizers())}
    return [asdict(row) | {"place": order[row.kind].index(row.name)} for row in noise_report(model, copy, images)]


def unit_rows(copy: QuantizedModel) -> list[dict[str, Any]]:
    """Return the errors of a copy's learned units, the worst first, and each one's position in the learning order."""
    order = copy.about.get("units", [])
    rows = [asdict(error) for error in unit_errors(copy)]
    return [row | {"place": order.index(row)} for row in rows]


def boxes(model: FloatModel, copies: Copies, sets: Images, *, profile: str, scenes: int) -> Tables:
    """Return the boxes of a detector and its copies in the first test scenes, in pixels, with scores >= `SURE`."""
    data = datasets.load_annotated(profile, "test", scenes)
    images = [data.images[scene].float() / 255 for scene in range(scenes)]
    rows = []
    for title, net in _all(model, copies).items():
        with torch.inference_mode():
            answers = detector_of(model, net)(images)
        for scene, answer in enumerate(answers):
            found = zip(*(answer[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
            rows += [
                {
                    "network": title,
                    "scene": scene,
                    "label": label,
                    "score": score,
                    **dict(zip(CORNERS, box, strict=True)),
                }
                for box, label, score in found
                if score >= SURE
            ]
    return {"boxes": columns(rows)}


def files(model: FloatModel, copies: Copies, sets: Images, *, profile: str, test_images: int | None) -> Tables:
    """Return facts about the ONNX files of a network and its copies, which onnxruntime runs.

    They are the size in bytes; seconds per image, 1 image at a time on 1 thread, the median; top-1, or a detector's
    mAP, of the file and of its source; and the share of outputs that are equal bit for bit.
    """
    from dghlib.export import OnnxNetwork, export_onnx  # needs packages that looks at images do not need

    some = real_images(profile, model, 32, seed=0)
    measure = "map" if model.task == "detection" else "top1"
    rows = []
    for title, net in _all(model, copies).items():
        with TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            export_onnx(path, model, copies.get(title))
            file = OnnxNetwork(path, threads=1)
            with torch.no_grad():
                same = _part_that_is_equal(file(some), net(some))
            rows.append(
                {
                    "network": title,
                    "bytes": path.stat().st_size,
                    "seconds": _latency(file, some[:1]),
                    f"{measure} of the file": quality(profile, test_images, model, file)[measure],
                    measure: quality(profile, test_images, model, net)[measure],
                    "equal": same,
                }
            )
    return {"files": columns(rows)}


def _all(model: FloatModel, copies: Copies) -> dict[str, nn.Module]:
    return {FLOAT: model.net, **copies}


def _part_that_is_equal(found: Any, wanted: Any) -> float:
    """Return the share of equal numbers in one tensor or in several."""
    pairs = list(zip(tree_leaves(found), tree_leaves(wanted), strict=True))
    return sum(int((one == other).sum()) for one, other in pairs) / sum(one.numel() for one, _ in pairs)


def _latency(network: nn.Module, image: Tensor) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        network(image)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


LOOKS: dict[str, Callable[..., Tables]] = {"layers": layers, "boxes": boxes, "files": files}
