"""Qualcomm's AI Model Efficiency Toolkit (AIMET): AdaRound, layer by layer, with its defaults.

Inputs and outputs of layers are quantized, together with the operations around them; weights have a grid for each
output channel.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from working import COPY, FOLDER, calibration_batches, outcome, work


def copied(
    net: nn.Module, method: str, weight_bits: int, activation_bits: int, iterations: int
) -> Callable[[], dict[str, Any]]:
    """Make a copy of the network, with roundings learned in `iterations` per layer; see `working.outcome`."""
    batches, net = calibration_batches(), copy.deepcopy(net)
    # what a user writes
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.onnx import export as export_onnx
    from aimet_torch.quantsim import QuantizationSimModel

    image, config = batches[0][:1], get_path_for_per_channel_config()
    prepared = prepare_model(net).eval()
    fold_all_batch_norms(prepared, None, dummy_input=image)
    parameters = AdaroundParameters(batches, len(batches), default_num_iterations=iterations)
    rounded = Adaround.apply_adaround(
        prepared, image, parameters, str(FOLDER), "rounded", weight_bits, default_config_file=config
    )
    simulated = QuantizationSimModel(
        rounded, image, default_param_bw=weight_bits, default_output_bw=activation_bits, config_file=config
    )
    simulated.set_and_freeze_param_encodings(str(FOLDER / "rounded.encodings"))
    simulated.compute_encodings(lambda model: [model(batch) for batch in batches])
    # until here

    def export() -> None:
        # what a user writes
        export_onnx(simulated.model, batches[0], str(COPY), prequantize_constants=True, opset_version=21, dynamo=False)
        # until here

    return outcome(simulated.model.eval(), export)


if __name__ == "__main__":
    work(
        {"copy": copied},
        ("aimet-torch", "torch"),
        (
            "aimet_torch.adaround.adaround_weight",
            "aimet_torch.batch_norm_fold",
            "aimet_torch.model_preparer",
            "aimet_torch.onnx",
            "aimet_torch.quantsim",
        ),
    )
