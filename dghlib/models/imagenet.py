"""ImageNet networks of the papers: torchvision's architectures, with BRECQ's weights or torchvision's own.

BRECQ's checkpoints are those of the papers on reconstruction, of GENIE and of DGH. Top-1 on the 50 000 validation
images, as measured by users: ResNet-18 71.0, ResNet-50 76.6, MobileNetV2 72.6.
"""

from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from dghlib.models.float_model import FloatModel
from dghlib.models.public import published

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "imagenet_resnet18": torchvision.models.resnet18,
    "imagenet_resnet50": torchvision.models.resnet50,
    "imagenet_mobilenetv2": torchvision.models.mobilenet_v2,
    "imagenet_torchvision_resnet18": torchvision.models.resnet18,
    "imagenet_torchvision_resnet50": torchvision.models.resnet50,
    "imagenet_torchvision_mobilenetv2": torchvision.models.mobilenet_v2,
}


def load(name: str) -> FloatModel:
    """Return a network of BUILDERS with its public weights, in eval mode.

    Raises:
        MissingAsset, WrongChecksum: as `assets.locate`.
        ValueError: the checkpoint holds another network.
    """
    with published(name) as checkpoint:
        net = with_weights(BUILDERS[name](weights=None), checkpoint.get("model", checkpoint), name)
    return FloatModel(name=name, net=net.eval(), image_shape=(3, 224, 224), mean=MEAN, std=STD)


def with_weights(net: nn.Module, state: dict[str, Tensor], name: str) -> nn.Module:
    """Load a checkpoint whose tensors have the order of the network's own, whatever their keys.

    BRECQ's MobileNetV2 numbers the layers of a block consecutively, where torchvision nests them; the order is the
    same.

    Raises:
        ValueError: another number of tensors, or a tensor of another shape; the message names the first.
    """
    own = net.state_dict()
    if len(own) != len(state):
        raise ValueError(f"the checkpoint of {name} holds {len(state)} tensors, the network {len(own)}")
    for (key, ours), (theirs_key, theirs) in zip(own.items(), state.items(), strict=True):
        if ours.shape != theirs.shape or key.rsplit(".", 1)[-1] != theirs_key.rsplit(".", 1)[-1]:
            raise ValueError(
                f"the checkpoint of {name} has {theirs_key} {tuple(theirs.shape)} where the network has "
                f"{key} {tuple(ours.shape)}"
            )
    net.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return net
