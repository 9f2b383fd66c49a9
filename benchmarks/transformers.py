"""The cost of quantizing vision transformers of full size, compared with forward passes of the same images.

ViT-B, DeiT-B and Swin-B of timm with random weights, W4A4, on 1 thread, with 4 images of 224 pixels. The cost of a
method grows with the number of images; the papers have 32. A whole run of a method is measured once; forward passes
of all images run before and after it.

From the repository's root: python -m benchmarks.transformers
"""

import itertools
import time
from dataclasses import dataclass

import timm
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.measuring import Spread, timed
from dghlib.models import FloatModel
from dghlib.quantizers import QUANTIZERS

NETWORKS = ("vit_base_patch16_224", "deit_base_patch16_224", "swin_base_patch4_window7_224")
SMALLEST = "test_vit"
METHODS = ("repq_vit", "ptq4vit", "erq")


@dataclass(frozen=True)
class Cost:
    """Processor seconds of a method on all images, and their ratio to those of the forward passes."""

    network: str
    method: str
    seconds: float
    of_forward: Spread


def network(name: str) -> FloatModel:
    """Return a network of timm with random weights, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, pretrained=False).eval()
    return FloatModel(name=name, net=net, image_shape=net.default_cfg["input_size"], mean=(0.5,) * 3, std=(0.5,) * 3)


def cost(model: FloatModel, images: Tensor, method: str) -> Cost:
    """Return the cost of a method with these images; a batch is 1 image, so that memory suffices."""
    fields = QUANTIZERS[method].Config.__dataclass_fields__
    batched = {"batch_size": 1} if "batch_size" in fields else {}
    config = QUANTIZERS[method].Config(weight_bits=4, activation_bits=4, **batched)

    def forward() -> float:
        return timed(lambda: [model.net(image[None]) for image in images]).processor

    with torch.no_grad():
        before = forward()
    took = timed(lambda: QUANTIZERS[method].quantize(model, images, config)).processor
    with torch.no_grad():
        after = forward()
    return Cost(model.name, method, took, Spread.of([took / before, took / after]))


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parser(__doc__).parse_args(arguments)
    measuring.prepare(options)
    start = time.perf_counter()
    networks, images = ((SMALLEST,), 2) if options.smoke else (NETWORKS, 4)
    print(f"{'network':32}{'method':12}{'seconds':>8}  of forward passes ({images} images)")
    found = []
    for method, name in tqdm(list(itertools.product(METHODS, networks)), desc="methods on networks"):
        model = network(name)
        found.append(cost(model, measuring.smooth_images(images, model.image_shape[-1]), method))
        print(f"{name:32}{method:12}{found[-1].seconds:8.0f}  {found[-1].of_forward}", flush=True)
        inputs = {"networks": list(networks), "images": images, "bits": "W4A4"}
        # after every run, so that a stopped run keeps its results
        measuring.save(options, "transformers", inputs, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
