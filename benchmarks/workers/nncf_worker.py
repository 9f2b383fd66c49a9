"""Intel's Neural Network Compression Framework (NNCF) on ONNX files: 8 bits, with its bias correction.

Inputs of its operators are quantized; weights have a symmetric grid for each output channel.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from working import COPY, FLOAT, FOLDER, calibration_batches, onnx_answers, outcome, work


def copied(net: nn.Module, method: str, weight_bits: int, activation_bits: int, **_: Any) -> Callable[[], Any]:
    """Make a copy of the network's ONNX file in 8 bits; see `working.outcome`.

    Raises:
        ValueError: other bits; `nncf.quantize` has no setting for them.
    """
    if (weight_bits, activation_bits) != (8, 8):
        raise ValueError("nncf.quantize makes 8 bits alone")
    images = [image for batch in calibration_batches() for image in batch.split(1)]
    made = FOLDER / "made.onnx"
    # what a user writes
    import nncf
    import onnx

    dataset = nncf.Dataset(images, lambda image: {"images": image.numpy()})
    quantized = nncf.quantize(onnx.load(FLOAT), dataset, subset_size=len(images))
    onnx.save(quantized, made)
    # until here
    return outcome(onnx_answers(made), lambda: made.rename(COPY))


if __name__ == "__main__":
    work({"copy": copied}, ("nncf", "onnx", "onnxruntime"), ("nncf", "nncf.onnx.quantization.quantize_model"))
