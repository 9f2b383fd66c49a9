"""The networks that ship with the package, trained on the benchmark `shapes`.

Small versions of the networks of the papers: ResNet-18 (residual), ResNet-50 (bottleneck) and MobileNetV2
(inverted residual); and a vision transformer. `python -m dghlib.training.classifiers` trains them again.
"""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from dghlib.models.classifiers import BasicBlock, Bottleneck, MobileNetV2, ResidualNet
from dghlib.models.float_model import FloatModel
from dghlib.models.transformers import VisionTransformer

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PIPELINES = Path(__file__).parent / "pipelines"  # diffusion models, in the format of the library diffusers
NUM_CLASSES = 48


def residual() -> ResidualNet:
    """Return an untrained network in the shape of ResNet-18: 2, 2, 2, 2 basic blocks."""
    return ResidualNet(
        BasicBlock, (2, 2, 2, 2), (24, 40, 56, 64), num_classes=NUM_CLASSES, stem_channels=24, stem_pool=True
    )


def bottleneck() -> ResidualNet:
    """Return an untrained network in the shape of ResNet-50, with 2, 3, 4, 2 bottlenecks instead of 3, 4, 6, 3."""
    return ResidualNet(
        Bottleneck, (2, 3, 4, 2), (16, 24, 36, 48), num_classes=NUM_CLASSES, stem_channels=24, stem_pool=True
    )


def inverted() -> MobileNetV2:
    """Return an untrained network in the shape of MobileNetV2, with fewer blocks."""
    plan = ((1, 16, 1, 1), (6, 24, 1, 1), (6, 32, 2, 2), (6, 48, 2, 2), (6, 64, 2, 1))
    return MobileNetV2(plan, num_classes=NUM_CLASSES, stem_channels=16, stem_stride=2, head_channels=256)


def transformer() -> VisionTransformer:
    """Return an untrained vision transformer: a stem with batch norms, 16 patches, 3 blocks, no class token."""
    return VisionTransformer(
        size=32,
        patch=8,
        stem=(24, 48),
        class_token=False,
        width=96,
        depth=3,
        heads=4,
        hidden=192,
        num_classes=NUM_CLASSES,
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "shapes_residual": residual,
    "shapes_bottleneck": bottleneck,
    "shapes_inverted": inverted,
    "shapes_transformer": transformer,
}


def as_model(name: str, net: nn.Module) -> FloatModel:
    """Return one of these networks with the space of its images, in eval mode."""
    return FloatModel(name=name, net=net.eval(), image_shape=(3, 32, 32), mean=(0.42,) * 3, std=(0.26,) * 3)


def checkpoint(name: str) -> Path:
    """Return the file with the trained weights of a network, by its key in NETS."""
    return CHECKPOINTS / f"{name}.safetensors"


def load(name: str) -> FloatModel:
    """Return a trained network, by its key in NETS."""
    net = NETS[name]()
    net.load_state_dict(load_file(checkpoint(name)))
    return as_model(name, net)
