"""Sony's Model Compression Toolkit (MCT): post-training quantization, learned or not, and images by DGH.

Every tensor is quantized, weights with a threshold for each output channel, tensors with powers of 2. Widths other
than the platform's own are written into the description of the platform.
"""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import model_compression_toolkit as mct
import numpy as np
import torch
from torch import Tensor, nn
from working import BATCH_SIZE, COPY, FOLDER, calibration_batches, outcome, work


def platform(weight_thresholds: str) -> Any:
    """Return the toolkit's default platform, whose thresholds for weights are free, or the same with powers of two."""
    default = mct.get_target_platform_capabilities()
    if weight_thresholds == "free":
        return default
    text = re.sub(r'("weights_quantization_method":\s*)2', r"\g<1>0", default.model_dump_json())
    return type(default).model_validate_json(text)


def quantize(net: nn.Module, weight_thresholds: str) -> Callable[[], float]:
    """Make a copy of the network in 8 bits with the toolkit's defaults; the result is the error of its logits."""
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


def copied(
    net: nn.Module, method: str, weight_bits: int, activation_bits: int, iterations: int
) -> Callable[[], dict[str, Any]]:
    """Make a copy of the network, learned by "gptq" in `iterations`, or by "ptq" without; see `working.outcome`."""
    images, net = calibration_batches(), copy.deepcopy(net)
    # what a user writes
    import model_compression_toolkit as mct

    capabilities = mct.get_target_platform_capabilities()
    text = re.sub(r'("weights_n_bits":\s*)8', rf"\g<1>{weight_bits}", capabilities.model_dump_json())
    text = re.sub(r'("activation_n_bits":\s*)8', rf"\g<1>{activation_bits}", text)
    text = re.sub(r'("supported_input_activation_n_bits":\s*\[)8', rf"\g<1>{activation_bits}", text)
    capabilities = type(capabilities).model_validate_json(text)

    def batches() -> Iterator[list[Tensor]]:
        yield from ([batch] for batch in images)

    if method == "gptq":
        config = mct.gptq.get_pytorch_gptq_config(n_epochs=-(-iterations // len(images)))
        quantized, _ = mct.gptq.pytorch_gradient_post_training_quantization(
            net, batches, gptq_config=config, target_platform_capabilities=capabilities
        )
    else:
        quantized, _ = mct.ptq.pytorch_post_training_quantization(
            net, batches, target_platform_capabilities=capabilities
        )
    # until here

    def export() -> None:
        # what a user writes
        mct.exporter.pytorch_export_model(quantized, str(COPY), batches)
        # until here

    return outcome(quantized.eval(), export)


def generate(
    net: nn.Module, num_images: int, image_size: int, frozen: bool = False, file: str = "", **settings: Any
) -> Callable[[], None]:
    """Make images with DGH, and save them if a file is named. `frozen`: the caller froze the weights."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # this is the source of the order of its batches
    net.requires_grad_(not frozen)
    config = mct.data_generation.get_pytorch_data_generation_config(**settings)
    images = mct.data_generation.pytorch_data_generation_experimental(net, num_images, image_size, config)
    return lambda: torch.save(torch.cat(images), FOLDER / file) if file else None


if __name__ == "__main__":
    work(
        {"quantize": quantize, "copy": copied, "generate": generate},
        ("model-compression-toolkit", "numpy", "torch", "torchvision"),
    )
