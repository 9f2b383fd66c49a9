"""Public networks trained on real images, from their checkpoints in the data directory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dghlib.models.classifiers import BasicBlock, MobileNetV2, ResidualNet
from dghlib.models.float_model import FloatModel
from dghlib.models.transformers import VisionTransformer
from dghlib.storage import assets
from dghlib.storage.reading import reading

# For pixels from 0 to 1, as in the training of each network.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# MobileNetV2 at width 0.5: rows of (expansion, channels, blocks, stride of the first block).
HALF_WIDTH_PLAN = (
    (1, 8, 1, 1),
    (6, 16, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


def resnet(depth: int) -> ResidualNet:
    """Return an untrained CIFAR-10 ResNet: 6n + 2 layers in 3 stages, shortcut option A."""
    depths = ((depth - 2) // 6,) * 3
    return ResidualNet(BasicBlock, depths, (16, 32, 64), num_classes=10, stem_channels=16, padded_shortcuts=True)


def half_width_mobilenetv2(num_classes: int, stem_stride: int) -> MobileNetV2:
    """Return an untrained MobileNetV2 x0.5; stem stride 1 is for 32x32 images."""
    return MobileNetV2(
        HALF_WIDTH_PLAN,
        num_classes=num_classes,
        stem_channels=16,
        stem_stride=stem_stride,
        head_channels=640,
    )


def cifar10_resnet(depth: int) -> FloatModel:
    """Return ResNet-20 or ResNet-56 for CIFAR-10."""
    name = f"cifar10_resnet{depth}"
    with published(name) as checkpoint:
        state = {_our_resnet_key(key): tensor for key, tensor in checkpoint["state_dict"].items()}
        net = _with_weights(resnet(depth), state)
    return FloatModel(name=name, net=net, image_shape=(3, 32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def cifar10_mobilenetv2() -> FloatModel:
    """Return MobileNetV2 x0.5 for CIFAR-10, whose stem keeps the full resolution."""
    name = "cifar10_mobilenetv2"
    with published(name) as checkpoint:
        net = _with_weights(half_width_mobilenetv2(num_classes=10, stem_stride=1), checkpoint)
    return FloatModel(name=name, net=net, image_shape=(3, 32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD)


def transformer() -> VisionTransformer:
    """Return an untrained CIFAR-10 transformer: 64 patches of 4x4, a class token, 4 blocks."""
    return VisionTransformer(size=32, patch=4, width=128, depth=4, heads=4, hidden=256, num_classes=10)


def cifar10_transformer() -> FloatModel:
    """Return a vision transformer for CIFAR-10."""
    name = "cifar10_transformer"
    with published(name) as checkpoint:
        net = _with_weights(transformer(), _our_transformer(checkpoint))
    return FloatModel(name=name, net=net, image_shape=(3, 32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD)


def tiny_imagenet_mobilenetv2() -> FloatModel:
    """Return MobileNetV2 x0.5 for the 200 classes of Tiny-ImageNet, sorted by their WordNet id."""
    name = "tiny_imagenet_mobilenetv2"
    with published(name) as checkpoint:
        net = _with_weights(half_width_mobilenetv2(num_classes=200, stem_stride=2), checkpoint)
    return FloatModel(name=name, net=net, image_shape=(3, 64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD)


@contextmanager
def published(name: str) -> Iterator[Any]:
    """Yield the content of a public checkpoint; `weights_only`, so that opening it runs no code.

    Some checkpoints have no published checksum. Their missing content shows only where it is used, inside this block.

    Raises:
        MissingAsset, WrongChecksum: as `assets.locate`.
        ValueError: the file has other content; the message names it and the remedy.
    """
    path = assets.locate(name)
    again = f"delete it, and `dgh data {assets.manifests()[name].profile}` downloads it again"
    with reading(path, f"the checkpoint of {name}", again):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        _check_finite(checkpoint)
        yield checkpoint


def _check_finite(checkpoint: Any) -> None:
    for tensor in tree_leaves(checkpoint):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError("it holds NaN or infinity")


def _our_resnet_key(key: str) -> str:
    """Translate a parameter's name: "module.layer1.0.bn1.bias" to "stages.0.0.bn1.bias"."""
    key = key.removeprefix("module.")
    return re.sub(r"^layer(\d)", lambda match: f"stages.{int(match[1]) - 1}", key)


_TRANSFORMER_KEYS = (
    ("embedding.cls_token", "class_token"),
    ("embedding.pos_embeddings", "positions"),
    ("embedding.patch_embeddings.conv.", "patches."),
    ("encoder.layers.", "blocks."),
    (".alpha", ".weight"),
    (".beta", ".bias"),
    (".attn.out_proj.", ".attention.projection."),
    (".ffn.fc1.", ".perceptron.0."),
    (".ffn.fc2.", ".perceptron.2."),
    ("mlp_head.", "head."),
)


def _our_transformer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of parameters, and concatenate those of queries, keys and values."""
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for theirs, our in _TRANSFORMER_KEYS:
            key = key.replace(theirs, our)
        ours[key] = tensor
    for key in [key for key in ours if ".attn.query." in key]:
        parts = [ours.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        ours[key.replace("attn.query", "attention.qkv")] = torch.cat(parts)
    return ours


def _with_weights(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    net.load_state_dict(state)
    return net.eval()
