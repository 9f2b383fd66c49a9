"""Cards of the networks and data sets of the book: description, float accuracy, origin, licence."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dghlib.experiments.experiment import FLOAT
from dghlib.experiments.profiles import PROFILES
from dghlib.experiments.run import Record
from dghlib.showing.tables import cell, frame
from dghlib.storage import assets


@dataclass(frozen=True)
class Card:
    """The description of a network, known without its weights.

    Attributes:
        architecture: in words.
        parameters: their number, without batch-norm statistics.
        images: (C, H, W) of its input.
        manifest: the manifest of its weights, if they are not part of the package.
    """

    architecture: str
    parameters: int
    images: tuple[int, int, int]
    manifest: str = ""


_SMALL, _SCENES = (3, 32, 32), (3, 64, 64)
CARDS = {
    "shapes_residual": Card("residual blocks, 20 batch norms", 332_648, _SMALL),
    "shapes_bottleneck": Card("bottleneck blocks, 38 batch norms", 263_336, _SMALL),
    "shapes_inverted": Card("inverted residuals, 25 batch norms", 199_984, _SMALL),
    "shapes_transformer": Card("vision transformer, layer norms", 283_560, _SMALL),
    "cifar10_resnet20": Card("ResNet-20, shortcuts without weights", 269_722, _SMALL, "cifar10_resnet20"),
    "cifar10_resnet56": Card("ResNet-56, shortcuts without weights", 853_018, _SMALL, "cifar10_resnet56"),
    "cifar10_mobilenetv2": Card("MobileNetV2, half as wide", 590_410, _SMALL, "cifar10_mobilenetv2"),
    "cifar10_transformer": Card("vision transformer, layer norms", 546_186, _SMALL, "cifar10_transformer"),
    "tiny_imagenet_mobilenetv2": Card("MobileNetV2, half as wide", 712_200, _SCENES, "tiny_imagenet_mobilenetv2"),
    "imagenet_efficientnet_lite0_128": Card("EfficientNet-Lite0", 4_652_008, (3, 128, 128)),
    "imagenet_efficientnet_lite1_128": Card("EfficientNet-Lite1, deeper", 5_416_680, (3, 128, 128)),
    "imagenet_efficientnet_lite2_128": Card("EfficientNet-Lite2, deeper and wider", 6_092_072, (3, 128, 128)),
    "shapes_ssdlite": Card("SSDLite on inverted residuals", 206_308, _SCENES),
    "shapes_fcos": Card("FCOS, a pyramid on residual blocks", 566_340, _SCENES),
    "shapes_retinanet": Card("RetinaNet, a pyramid on bottlenecks", 521_387, _SCENES),
    "coco_fastestdet": Card("FastestDet on ShuffleNetV2", 244_490, (3, 352, 352), "coco_fastestdet"),
    "coco_fastestdet_folded_head": Card("FastestDet with a folded head", 244_021, (3, 352, 352), "coco_fastestdet"),
}


def networks(records: Sequence[Record]) -> pd.DataFrame:
    """Return a card of every network: architecture, parameters, images, float accuracy from its records, origin."""
    measured = frame(records)
    quality = measured[measured.source == FLOAT].groupby("model").agg({"top1": "mean", "map": "mean"})
    rows = []
    for name, card in CARDS.items():
        known = quality.loc[name] if name in quality.index else {}
        shown = [
            cell(known[key], None) + unit for key, unit in (("top1", ""), ("map", " mAP")) if known.get(key, 0) > 0
        ]
        origin = assets.manifests()[card.manifest] if card.manifest else None
        rows.append(
            {
                "network": name,
                "architecture": card.architecture,
                "parameters": f"{card.parameters:,}".replace(",", " "),
                "images": "x".join(map(str, card.images)),
                "float, %": shown[0] if shown else "",
                "weights": origin.origin if origin else "part of the package, or of the extra imagenet-lite",
                "licence": origin.licence if origin else "Apache-2.0",
            }
        )
    return pd.DataFrame(rows).set_index("network")


def data_sets() -> pd.DataFrame:
    """Return a card of every data set, by profile: its description, files and licence."""
    rows = []
    for name, profile in PROFILES.items():
        of_data = [
            each for key, each in assets.manifests().items() if each.profile == name and "weights" not in each.path
        ]
        rows.append(
            {
                "profile": name,
                "data": profile.about.partition(";")[0],
                "networks": ", ".join(profile.models),
                "files": "; ".join(each.origin for each in of_data) or "drawn by our code, or placed by the user",
                "licence": "; ".join(dict.fromkeys(each.licence for each in of_data)) or "Apache-2.0, or the owner's",
            }
        )
    return pd.DataFrame(rows).set_index("profile")
