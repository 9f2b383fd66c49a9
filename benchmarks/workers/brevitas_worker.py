"""AMD's Brevitas: the recipe of its own examples for ImageNet, with GPTQ and bias correction.

Inputs of layers, sums and the image are quantized; weights have a symmetric grid for each output channel, and ranges of
tensors are percentiles.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from working import COPY, calibration_batches, outcome, work


def copied(net: nn.Module, method: str, weight_bits: int, activation_bits: int, **_: Any) -> Callable[[], Any]:
    """Make a copy of the network; see `working.outcome`."""
    images, net = calibration_batches(), copy.deepcopy(net)
    # what a user writes
    from brevitas.export import export_onnx_qcdq
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq.ptq_common import (
        apply_bias_correction,
        apply_gptq,
        calibrate,
        quantize_model,
    )

    pairs = [(batch, None) for batch in images]
    prepared = preprocess_for_quantize(net, equalize_iters=20)
    quantized = quantize_model(
        prepared,
        backend="fx",
        weight_bit_width=weight_bits,
        act_bit_width=activation_bits,
        bias_bit_width=32,
        weight_quant_granularity="per_channel",
        act_quant_percentile=99.999,
        act_quant_type="sym",
        scale_factor_type="float_scale",
        quant_format="int",
    )
    calibrate(pairs, quantized)
    quantized(images[0])  # this initializes the quantizers of the weights
    apply_gptq(pairs, quantized, act_order=True)
    apply_bias_correction(pairs, quantized)
    # until here

    def export() -> None:
        # what a user writes
        export_onnx_qcdq(quantized, args=images[0], export_path=str(COPY), opset_version=21, dynamo=False)
        # until here

    return outcome(quantized.eval(), export)


if __name__ == "__main__":
    modules = ("brevitas.export", "brevitas.graph.quantize", "brevitas_examples.imagenet_classification.ptq.ptq_common")
    work({"copy": copied}, ("brevitas", "torch"), modules)
