"""The loss of fine-tuning: the terms from which a quantized student learns from the float network.

Sources: S. Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020 (distillation at temperature 20);
H. Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023 (HAST: aligned features); M. Kim et al.,
"SynQ: Accurate Zero-shot Quantization by Synthesis-aware Fine-tuning", ICLR 2025 (class activation maps, soft labels
alone for hard images, the low-pass filter).

At temperature 20, T^2 KL(teacher || student), summed over classes and averaged over images, is nearly half the mean
squared difference of the logits after their mean over classes has been subtracted. The published losses all have this
form and differ only in its weight: 1 for AdaDFQ, 1 / classes for GDFQ, AIT and Qimera, whose code also averages over
classes, and 20 for IntraQ, HAST and SynQ.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dghlib.quantizers.operations import layer_calls
from dghlib.quantizers.quantized_model import QuantizedModel, quantized_node
from dghlib.quantizers.units import units_of

_SMALLEST_WEIGHT = 1e-10  # of a channel in a class activation map


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The weights of the terms.

    Attributes:
        distillation: T^2 KL(teacher || student) of the logits.
        temperature: T.
        cross_entropy: with the class that an image was made for, or that the teacher assigns to it.
        easy: images count in `cross_entropy` if the teacher's largest probability exceeds 1 - easy; 1 takes all.
        features: HAST's alignment of the outputs of blocks.
        maps: SynQ's alignment of class activation maps of the last convolution.
    """

    distillation: float
    temperature: float
    cross_entropy: float
    easy: float
    features: float
    maps: float


class Lesson:
    """The loss of a student on images, as the sum of some terms.

    Args:
        student, teacher: the quantized network and the graph of the float one; the student's quantizers are in place.
        terms: their weights.

    Raises:
        ValueError: the network's output is not a single tensor of logits (N, classes).
    """

    def __init__(self, student: QuantizedModel, teacher: fx.GraphModule, terms: Terms):
        check_classifier(teacher)
        self.terms = terms
        names = _blocks(teacher) if terms.features else []
        self._count = len(names)
        if terms.maps:
            names = [*names, _last_convolution(teacher)]
        self.teacher = _watched(teacher, names)
        self.student = _watched(student.graph, names)

    def __call__(self, images: Tensor, targets: Tensor | None = None, perturbed: bool = False) -> tuple[Tensor, Tensor]:
        """Return the loss of images (N, C, H, W), and the distillation in it; the loss has gradients for the images.

        `targets` (N, classes) are the class shares of the images, None for the teacher's classes. For images that were
        `perturbed`, activation maps do not count.
        """
        terms = self.terms
        wanted, *wanted_features = self._ask_teacher(images, perturbed)
        answer, *features = self.student(images)
        distilled = distillation(answer, wanted, terms.temperature)
        loss = terms.distillation * distilled
        if terms.cross_entropy:
            loss = loss + terms.cross_entropy * easy_cross_entropy(answer, wanted.detach(), terms.easy, targets)
        if terms.features:
            pairs = zip(features[: self._count], wanted_features[: self._count], strict=True)
            loss = loss + terms.features * torch.stack([feature_distance(*pair) for pair in pairs]).sum()
        if terms.maps and not perturbed:
            maps, wanted_maps = activation_map(features[-1], answer), activation_map(wanted_features[-1], wanted)
            loss = loss + terms.maps * F.mse_loss(maps, wanted_maps.detach())
        return loss, distilled.detach()

    def _ask_teacher(self, images: Tensor, perturbed: bool) -> tuple[Tensor, ...]:
        """Return the teacher's outputs, with a graph for the gradient of its features if it is needed."""
        if self.terms.maps and not perturbed and not images.requires_grad:
            images = images.detach().requires_grad_()
        return self.teacher(images)


def distillation(answer: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(wanted || answer) of logits (N, C) at temperature T, averaged over images."""
    logs = (answer / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(
        logs, (wanted / temperature).log_softmax(1), log_target=True, reduction="batchmean"
    )


def easy_cross_entropy(answer: Tensor, wanted: Tensor, easy: float, targets: Tensor | None = None) -> Tensor:
    """Return the cross-entropy, zero for hard images, averaged over all images.

    It is that with the class shares `targets` (N, classes), or with the teacher's class.
    """
    sureness, labels = wanted.softmax(1).max(1)
    losses = F.cross_entropy(answer, labels if targets is None else targets, reduction="none")
    return (losses * (1 - sureness < easy)).mean() if easy < 1 else losses.mean()


def feature_distance(features: Tensor, wanted: Tensor) -> Tensor:
    """Return the distance of the energies of channels (N, C, H, W), normalised for each image (HAST)."""
    energy, wanted_energy = (F.normalize(each.square().mean((2, 3))) for each in (features, wanted))
    return F.mse_loss(energy, wanted_energy)


def activation_map(features: Tensor, logits: Tensor) -> Tensor:
    """Return where a network sees its predicted class, (N, H, W) from 0 to 1: Grad-CAM of `features` (N, C, H, W)."""
    top = logits.max(1).values.sum()
    (gradient,) = torch.autograd.grad(top, features, retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True).clamp(min=_SMALLEST_WEIGHT)
    maps = (weights * features).sum(1).relu()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-8)


def check_classifier(graph: fx.GraphModule) -> None:
    """Raise ValueError unless a graph returns a single tensor of logits (N, classes) with at least 2 classes."""
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    answer = end.args[0]
    shape: tuple[int, ...] = answer.meta.get("shape", ()) if isinstance(answer, fx.Node) else ()
    if len(shape) != 2 or shape[1] < 2:
        found = f"a tensor {tuple(shape)}" if shape else "something else"
        raise ValueError(
            f"fine-tuning learns from logits (N, classes) of at least 2 classes, but the network returns {found}: "
            "take a method that learns block by block, such as brecq or qdrop"
        )


def _blocks(graph: fx.GraphModule) -> list[str]:
    """Return the names of the feature maps at the outputs of blocks."""
    shapes = {node.name: node.meta.get("shape", ()) for node in graph.graph.nodes}
    return [unit.exit for unit in units_of(graph, "block") if len(shapes[unit.exit]) == 4]


def _last_convolution(graph: fx.GraphModule) -> str:
    names = [node.name for node, _ in layer_calls(graph) if len(node.meta["shape"]) == 4]
    if not names:
        raise ValueError("class activation maps need a convolution, and the network has none: set maps=0")
    return names[-1]


def _watched(graph: fx.GraphModule, names: Collection[str]) -> fx.GraphModule:
    """Return a graph that computes (logits, *tensors of these names), on the modules of `graph` itself."""
    watched = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    logits = watched.graph_copy(graph.graph, copies)
    watched.output((logits, *(copies[quantized_node(graph, name)] for name in names)))
    return fx.GraphModule(graph, watched)
