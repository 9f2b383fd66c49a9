"""Measurements of a network on sets of images: tables of numbers, from which the figures of the papers are drawn.

A look is a function of a classifier, of images (N, C, H, W) in its normalised space by the title of their set, and of
settings of its own. It returns tables by name, each as columns by name. `run.run` computes it for an `Observation`, and
keeps the tables.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dghlib.experiments.experiment import FLOAT
from dghlib.experiments.scoring import quality
from dghlib.images import flip_and_crop, per_channel, to_pixels
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics, stored_statistics, variance_of, working_copy
from dghlib.running.hooks import recorded_inputs
from dghlib.seeds import stream
from dghlib.synthesis.classes import find_head
from dghlib.synthesis.matching import batch_norm_distance, channel_weights, measure, spread_of

VERSION = 1

Border = Literal["edge", "black"]
Images = Mapping[str, Tensor]
Columns = dict[str, list[Any]]
Tables = dict[str, Columns]

REAL_SET = "Real data"  # the title of the set with which others are compared
POINTS_OF_A_CURVE = 200
QUANTILES = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)
_QUANTILE_NAMES = [f"q{level}" for level in QUANTILES]
NEIGHBOURS = 30  # of t-SNE (its perplexity); a third of the images if there are few


def errors(model: FloatModel, sets: Images, *, margin: int, border: Border, seed: int) -> Tables:
    """Return by layer the distance of images from the running statistics, augmented and unchanged (DGH's Figure 3).

    See `augmented`. The table `errors` has the mean over channels of the squared difference of each statistic.
    """
    net = working_copy(model.net, "cpu", model.image_shape)
    layers = stored_statistics(net, model.image_shape)
    rows = []
    for images in sets.values():
        black = -per_channel(model.mean, images) / per_channel(model.std, images)
        moved = augmented(images, margin, stream(seed, "figure 3"), black if border == "black" else None)
        kinds = {"augmented": moved, "as they are": images}
        for kind, shown in kinds.items():
            with torch.no_grad():
                moments = measure(net, shown, layers).moments[0]
            for statistic, by_layer in _errors(moments, layers).items():
                rows += [
                    {"layer": place, "images": kind, "statistic": statistic, "error": error}
                    for place, error in enumerate(by_layer, start=1)
                ]
    return {"errors": columns(rows)}


def augmented(images: Tensor, margin: int, draws: torch.Generator, border: Tensor | None = None) -> Tensor:
    """Return images (N, C, H, W), half of them mirrored, each shifted at random by up to `margin` pixels.

    Pixels outside the image have the colour `border`, (1, C, 1, 1), or without it that of the nearest pixel.
    """
    flips = torch.rand(len(images), generator=draws) < 0.5
    tops, lefts = torch.randint(2 * margin + 1, (2, len(images)), generator=draws)
    height, width = images.shape[2:]
    around = (margin,) * 4
    larger = F.pad(images, around, mode="replicate") if border is None else F.pad(images - border, around) + border
    return flip_and_crop(larger, flips, tops, lefts, (height, width))


def _errors(moments: Tensor, layers: StoredStatistics) -> dict[str, list[float]]:
    """Return the mean squared error of each statistic at every layer."""
    deviations = spread_of(variance_of(moments), "std") - spread_of(layers.variance, "std")
    differences = {"mean": moments[0] - layers.mean, "standard deviation": deviations}
    return {
        name: [part.mean().item() for part in layers.per_layer(difference.square())]
        for name, difference in differences.items()
    }


def features(model: FloatModel, sets: Images) -> Tables:
    """Return the features of all sets in 2 planes, and how sets differ in the whole space (DGH's Figure 2).

    The table `points` has the coordinates of every image: in the map of t-SNE, which places neighbours near each other
    but does not preserve other distances, and in the plane of the 2 directions in which all sets together vary most.
    The table `spreads` is described at `spreads`.

    Raises:
        NotAClassifier, NoFeatures: the network has no features.
    """
    found = {title: features_of(model, images) for title, images in sets.items()}
    together = torch.cat([points for points, _ in found.values()])
    maps = {"t-SNE": neighbour_map(together), "principal components": principal_plane(together)}
    titles = [title for title, images in sets.items() for _ in range(len(images))]
    points = [
        {"map": name, "images": title, "x": x, "y": y}
        for name, plane in maps.items()
        for title, (x, y) in zip(titles, plane.tolist(), strict=True)
    ]
    return {"points": columns(points), "spreads": spreads(found)}


def features_of(model: FloatModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features (N, F) of images, the input of the last linear layer, and their predicted classes (N,).

    Raises:
        NotAClassifier, NoFeatures: the network has none.
    """
    net = working_copy(model.net, "cpu", model.image_shape)
    layer = find_head(model, net, "The map of features").layer
    with torch.no_grad(), recorded_inputs(net, [layer]) as inputs:
        classes = net(images).argmax(1)
    return inputs[layer][-1], classes


def neighbour_map(points: Tensor) -> Tensor:
    """Return the coordinates (N, 2) of points (N, F) in the map of t-SNE."""
    from sklearn.manifold import TSNE  # takes seconds to import

    perplexity = min(NEIGHBOURS, (len(points) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points.numpy()))


def principal_plane(points: Tensor) -> Tensor:
    """Return the coordinates (N, 2) of points (N, F) in the 2 directions in which they vary most."""
    centred = points - points.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T


def spreads(sets: Mapping[str, tuple[Tensor, Tensor]]) -> Columns:
    """Return how sets of (features, classes) spread, and the share of images whose nearest neighbour is of their set.

    `within a class` is the mean cosine distance of images from the centre of their class, where a class has several;
    `nearest neighbour of its own set` compares each set with `REAL_SET`.
    """
    rows = [
        {
            "images": title,
            "within a class": _within_class(points, classes),
            "classes seen": len(classes.unique()),
            "nearest neighbour of its own set": None if title == REAL_SET else _told_apart(points, sets[REAL_SET][0]),
        }
        for title, (points, classes) in sets.items()
    ]
    return columns(rows)


def _within_class(points: Tensor, classes: Tensor) -> float | None:
    """Return the mean cosine distance of images from the centre of their class, None if no class has several images."""
    distances = []
    for label in classes.unique():
        members = points[classes == label]
        if len(members) > 1:
            distances.append(1 - torch.cosine_similarity(members, members.mean(0, keepdim=True)))
    return torch.cat(distances).mean().item() if distances else None


def _told_apart(points: Tensor, real: Tensor) -> float:
    """Return the share of 2 sets whose nearest other image is of the same set: 1/2 if they cannot be told apart."""
    together = torch.cat([points, real])
    distances = torch.cdist(together, together).fill_diagonal_(torch.inf)
    ours = torch.arange(len(together)) < len(points)
    return (ours == ours[distances.argmin(1)]).float().mean().item()


def classes(model: FloatModel, sets: Images) -> Tables:
    """Return how many classes the network sees in each set, and the equivalent number of equally frequent classes.

    The latter is the exponential of the entropy of their frequencies.
    """
    rows = []
    for title, images in sets.items():
        with torch.inference_mode():
            counts = model.net(images).argmax(1).bincount().double()
        evenly = torch.special.entr(counts / counts.sum()).sum().exp().item()
        rows.append({"images": title, "classes": int(counts.count_nonzero()), "as if evenly": evenly})
    return {"classes": columns(rows)}


def outputs(model: FloatModel, sets: Images) -> Tables:
    """Return the distribution of the network's outputs for each set (DGH's Figure 4): `densities` and `quantiles`."""
    from scipy.stats import gaussian_kde

    densities, quantiles = [], []
    for title, images in sets.items():
        with torch.inference_mode():
            values = model.net(images).flatten().double()
        places = np.linspace(values.min().item(), values.max().item(), POINTS_OF_A_CURVE)
        curve = zip(places.tolist(), gaussian_kde(values.numpy())(places).tolist(), strict=True)
        densities += [{"images": title, "output": place, "density": density} for place, density in curve]
        quantiles.append({"images": title} | {f"q{level}": values.quantile(level).item() for level in QUANTILES})
    return {"densities": columns(densities), "quantiles": columns(quantiles)}


def tensors(model: FloatModel, sets: Images) -> Tables:
    """Return the quantiles of each tensor that a detector's head returns, by name, for each set."""
    rows = []
    for title, images in sets.items():
        with torch.inference_mode():
            found = model.net(images)
        for name, values in found.items():
            ends = values.flatten().double().quantile(torch.tensor(QUANTILES, dtype=torch.float64))
            rows.append({"images": title, "tensor": name} | dict(zip(_QUANTILE_NAMES, ends.tolist(), strict=True)))
    return {"tensors": columns(rows)}


def distances(model: FloatModel, sets: Images) -> Tables:
    """Return the distance of each set from the network's statistics, see `distance`."""
    rows = [{"images": title, "distance": distance(model, images)} for title, images in sets.items()]
    return {"distances": columns(rows)}


def distance(model: FloatModel, images: Tensor) -> float:
    """Return the distance of images from a network's statistics: DGH's Eq. 4, mean over channels and layers."""
    net = working_copy(model.net, "cpu", model.image_shape)
    layers = stored_statistics(net, model.image_shape)
    weights = channel_weights(layers.sizes, "mean", layers.mean.device)
    with torch.no_grad():
        measured = measure(net, images, layers)
    return batch_norm_distance(measured.moments, layers, weights, "std").item()


def pictures(model: FloatModel, sets: Images, *, count: int) -> Tables:
    """Return the first `count` images of each set as pictures (DGH's Figures 8 and 9), and numbers of the whole set.

    The table `pictures` has them as PNG files in base64, `sets` their mean, standard deviation and distance from the
    network's statistics.
    """
    shown, numbers = [], []
    for title, images in sets.items():
        pixels = to_pixels(images[:count], model.mean, model.std)
        shown += [{"images": title, "png": _png(each)} for each in pixels]
        spread = {"mean": images.mean().item(), "standard deviation": images.std().item()}
        numbers.append({"images": title, **spread, "distance": distance(model, images)})
    return {"pictures": columns(shown), "sets": columns(numbers)}


def _png(pixels: Tensor) -> str:
    """Return uint8 pixels (3, H, W) as a PNG file in base64."""
    file = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def pictures_in(tables: Tables) -> dict[str, list[Image.Image]]:
    """Return the images that `pictures` kept, by the title of their set."""
    found: dict[str, list[Image.Image]] = {}
    for title, text in zip(tables["pictures"]["images"], tables["pictures"]["png"], strict=True):
        found.setdefault(title, []).append(Image.open(BytesIO(base64.b64decode(text))))
    return found


def onnxruntime(model: FloatModel, sets: Images, *, profile: str, test_images: int | None) -> Tables:
    """Return `top1` of a network that onnxruntime's own `quantize_static` quantized to 8 bits with each set.

    Our quantizers are not used: the float network is exported, and a calibration reader provides the images. The last
    row is the float network.
    """
    from onnxruntime.quantization import QuantType, quantize_static  # an extra, and seconds to import
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from dghlib.export import ImageReader, OnnxNetwork, export_onnx

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    reached = {}
    with TemporaryDirectory() as folder:
        exported, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "int8"))
        export_onnx(exported, model)
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        for title, images in sets.items():
            quantize_static(prepared, quantized, ImageReader(images), **kinds)
            reached[title] = quality(profile, test_images, model, OnnxNetwork(quantized, threads=1))["top1"]
    reached[FLOAT] = quality(profile, test_images, model, model.net)["top1"]
    return {"top1": columns([{"images": title, "top1": percent} for title, percent in reached.items()])}


def columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return rows as columns, with numbers rounded to 6 digits, since further digits are noise and people read records.

    Infinite values and NaN become None, which JSON can hold.
    """
    names = rows[0] if rows else ()
    return {name: [_short(row[name]) for row in rows] for name in names}


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


LOOKS: dict[str, Callable[..., Tables]] = {
    "errors": errors,
    "features": features,
    "classes": classes,
    "outputs": outputs,
    "tensors": tensors,
    "distances": distances,
    "pictures": pictures,
    "onnxruntime": onnxruntime,
}
