"""onnxruntime's own quantization of ONNX files, `quantize_static`: ranges from calibration, nothing learned.

Inputs and outputs of its operators are quantized; weights have a symmetric grid for each output channel.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from working import COPY, FLOAT, FOLDER, calibration_batches, onnx_answers, outcome, work


def copied(net: nn.Module, method: str, weight_bits: int, activation_bits: int, **_: Any) -> Callable[[], Any]:
    """Make a copy of the network's ONNX file; see `working.outcome`."""
    images = calibration_batches()
    # what a user writes
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"images": batch.numpy()} for batch in images])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    prepared, made = FOLDER / "prepared.onnx", FOLDER / "made.onnx"
    quant_pre_process(FLOAT, prepared)
    quantize_static(
        prepared,
        made,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type={4: QuantType.QInt4, 8: QuantType.QInt8}[weight_bits],
        activation_type={4: QuantType.QUInt4, 8: QuantType.QUInt8}[activation_bits],
    )
    # until here
    return outcome(onnx_answers(made), lambda: made.rename(COPY))


if __name__ == "__main__":
    work({"copy": copied}, ("onnxruntime", "onnx"), ("onnxruntime.quantization",))
