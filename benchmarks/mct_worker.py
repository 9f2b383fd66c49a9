"""Let Sony's Model Compression Toolkit (MCT) quantize a network or generate images, whenever asked to, and time it.

It runs in an environment of its own, without dghlib: `mct` starts it with a folder that holds `net.pt` and
`images.pt`, asks by lines of JSON on the standard input, and reads lines of JSON from the standard output: versions of
packages first, then one for each question.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import model_compression_toolkit as mct
import numpy as np
import torch
from torch import Tensor, nn

BATCH_SIZE = 32
PACKAGES = ("model-compression-toolkit", "numpy", "torch", "torchvision")
FOLDER = Path(sys.argv[1])


def platform(weight_thresholds: str) -> Any:
    """Return the toolkit's default platform, whose thresholds for weights are free, or the same with powers of two."""
    default = mct.get_target_platform_capabilities()
    if weight_thresholds == "free":
        return default
    text = re.sub(r'("weights_quantization_method":\s*)2', r"\g<1>0", default.model_dump_json())
    return type(default).model_validate_json(text)


def quantize(net: nn.Module, weight_thresholds: str) -> Callable[[], float]:
    """Make a copy of the network in 8 bits, as the toolkit does by default; the result is the error of its logits."""
    images: Tensor = torch.load(FOLDER / "images.pt")

    def batches() -> Iterator[list[Tensor]]:
        for batch in images.split(BATCH_SIZE):
            yield [batch]

    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        net, batches, target_platform_capabilities=platform(weight_thresholds)
    )

    @torch.no_grad()
    def error() -> float:
        expected = net(images[:BATCH_SIZE])
        return float((quantized(images[:BATCH_SIZE]) - expected).square().sum() / expected.square().sum())

    return error


def generate(
    net: nn.Module, num_images: int, image_size: int, frozen: bool = False, file: str = "", **settings: Any
) -> Callable[[], None]:
    """Make images with DGH; the result is a file of them, if one is named. `frozen`: the caller froze the weights."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # the source of its order of batches
    net.requires_grad_(not frozen)
    config = mct.data_generation.get_pytorch_data_generation_config(**settings)
    images = mct.data_generation.pytorch_data_generation_experimental(net, num_images, image_size, config)
    return lambda: torch.save(torch.cat(images), FOLDER / file) if file else None


TASKS: dict[str, Callable[..., Callable[[], Any]]] = {"quantize": quantize, "generate": generate}


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    net = torch.load(FOLDER / "net.pt", weights_only=False)
    print(json.dumps({name: version(name) for name in PACKAGES}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            wall, processor = time.perf_counter(), time.process_time()
            result = TASKS[question.pop("do")](net, **question)
            took = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
            answer = {"seconds": took, "result": result()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
