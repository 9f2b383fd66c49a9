"""AMD's Quark for PyTorch: ranges from calibration, nothing learned.

Only the inputs of layers are quantized; weights have a symmetric grid for each output channel.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from working import COPY, FOLDER, calibration_batches, outcome, work


def copied(net: nn.Module, method: str, weight_bits: int, activation_bits: int, **_: Any) -> Callable[[], Any]:
    """Make a copy of the network; see `working.outcome`."""
    images, net = calibration_batches(), nn.Sequential(copy.deepcopy(net))  # Quark takes any graph for one of its own
    # what a user writes
    from quark.torch import ModelQuantizer, export_onnx
    from quark.torch.quantization.config.config import (
        Int4PerChannelSpec,
        Int8PerChannelSpec,
        QConfig,
        QLayerConfig,
        Uint4PerTensorSpec,
        Uint8PerTensorSpec,
    )

    of_weights = {4: Int4PerChannelSpec, 8: Int8PerChannelSpec}[weight_bits]
    of_tensors = {4: Uint4PerTensorSpec, 8: Uint8PerTensorSpec}[activation_bits]
    weights = of_weights(ch_axis=0).to_quantization_spec()
    tensors = of_tensors().to_quantization_spec()
    quantizer = ModelQuantizer(QConfig(global_quant_config=QLayerConfig(input_tensors=tensors, weight=weights)))
    quantized = quantizer.freeze(quantizer.quantize_model(net, images))
    # until here

    def export() -> None:
        # what a user writes
        export_onnx(quantized, FOLDER, (images[0],), opset_version=21, uint4_int4_flag=weight_bits == 4)
        # until here
        next(path for path in FOLDER.glob("*.onnx") if "quark" in path.name).rename(COPY)

    return outcome(quantized.eval(), export)


if __name__ == "__main__":
    work({"copy": copied}, ("amd-quark", "torch"), ("quark.torch", "quark.torch.quantization.config.config"))
