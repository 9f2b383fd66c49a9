"""Quantize a network with Sony's Model Compression Toolkit (MCT) whenever asked to, and say what it took.

It runs in an environment of its own, without dghlib: `hptq` starts it with a folder that holds `net.pt` and
`images.pt`, asks by lines on the standard input ("free" or "power_of_two", the thresholds of weights), and reads lines
of JSON from the standard output: versions of packages first, then one for each question.
"""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import model_compression_toolkit as mct
import torch
from torch import Tensor, nn

BATCH_SIZE = 32
PACKAGES = ("model-compression-toolkit", "numpy", "torch", "torchvision")


def platform(weight_thresholds: str) -> Any:
    """Return the toolkit's default platform, whose thresholds for weights are free, or the same with powers of two."""
    default = mct.get_target_platform_capabilities()
    if weight_thresholds == "free":
        return default
    text = re.sub(r'("weights_quantization_method":\s*)2', r"\g<1>0", default.model_dump_json())
    return type(default).model_validate_json(text)


def quantize(net: nn.Module, images: Tensor, weight_thresholds: str) -> nn.Module:
    """Return a copy of the network in 8 bits, quantized as the toolkit does by default."""

    def batches() -> Iterator[list[Tensor]]:
        for batch in images.split(BATCH_SIZE):
            yield [batch]

    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        net, batches, target_platform_capabilities=platform(weight_thresholds)
    )
    return quantized


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    net = torch.load(folder / "net.pt", weights_only=False)
    images = torch.load(folder / "images.pt")
    with torch.no_grad():
        expected = net(images[:BATCH_SIZE])
    print(json.dumps({name: version(name) for name in PACKAGES}), flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            wall, processor = time.perf_counter(), time.process_time()
            quantized = quantize(net, images, line.strip())
            took = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
            with torch.no_grad():
                error = quantized(images[:BATCH_SIZE]) - expected
        print(json.dumps({"seconds": took, "error": float(error.square().sum() / expected.square().sum())}), flush=True)


if __name__ == "__main__":
    main()
