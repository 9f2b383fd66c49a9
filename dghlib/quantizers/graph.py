"""The graph for all quantizers: traced, in normal form, with batch norms folded into the layers before them."""

import logging
import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dghlib.models import FloatModel
from dghlib.quantizers.folding import fold
from dghlib.quantizers.normal_form import to_normal_form
from dghlib.quantizers.operations import LAYERS, NORMS, called_module, is_batch_norm, is_matrix
from dghlib.quantizers.sites import mark_sites
from dghlib.quantizers.sizes import read_batch_size_nearby
from dghlib.quantizers.tracing import UntraceableNetwork, check_one_input, make_weights_plain, trace
from dghlib.running.batchnorm import check_finite
from dghlib.running.copies import output_for, private_copy, to_channels_last

log = logging.getLogger(__name__)
_IMAGES = 3  # a network seldom has this size of its own
_TOLERANCE = 1e-3  # of the largest output; folding changes it by about 1e-6


def folded_graph(model: FloatModel) -> fx.GraphModule:
    """Return a graph that computes the same as `model.net` in eval mode, without the batch norms that can be folded.

    The graph is a private copy: the model is not changed. A node that holds a floating-point tensor has its shape, for
    3 images, in `node.meta["shape"]`. A call of a layer that took in a batch norm has the result of
    `folding.moments_after` in `node.meta["moments"]`. Sites are marked (see `sites`). The graph is compared with the
    network on 3 images of noise, for which hooks of the network are called once, because they may compute its weights;
    and on a single image.

    Raises:
        UntraceableNetwork: the network cannot be followed, or the graph computes something else.
        ValueError: several inputs, or images of another shape; NaN or Inf in weights or buffers; a batch norm without
            running statistics; a layer with weights that cannot be quantized.
    """
    check_finite(model.net)
    net = private_copy(model.net)
    check_one_input(net)
    noise = torch.randn(_IMAGES, *model.image_shape, generator=torch.Generator().manual_seed(0)).to(device_of(net))
    known_sizes = not getattr(model.net, "any_size", False)
    with torch.no_grad():
        expected = output_for(net, noise.clone())  # the network may write to its input
        make_weights_plain(net)
        expected_of_one = _answer(net, noise[:1].clone())
        graph = trace(net, noise, known_sizes)
        to_normal_form(graph)
        fold(graph)
        to_channels_last(graph)  # 1.2 to 1.8 times as fast on a CPU
        if not known_sizes:
            read_batch_size_nearby(graph, noise)
        _refuse_other_weights(graph)
        answers = [(_ShapeRecorder(graph).run(noise), expected)]
        if expected_of_one is not None:
            answers.append((graph(noise[:1]), expected_of_one))
        _check_same(answers, lambda: _same_in_double(model.net, noise, known_sizes))
    mark_sites(graph)
    for name in left_in_float(graph):
        log.warning("the weights of %s stay in float", name)
    return graph


def _answer(net: nn.Module, images: Tensor) -> Any:
    """Return the output of a network; None if it cannot take so few images."""
    try:
        return net(images)
    except (RuntimeError, ValueError, IndexError):
        return None


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a network's first parameter, or the CPU if it has none."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


class _ShapeRecorder(fx.Interpreter):
    """Writes into `meta` the shape of a floating-point tensor, and whether the result holds any tensor."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["holds"] = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if isinstance(result, Tensor) and result.is_floating_point():
            n.meta["shape"] = tuple(result.shape)
        return result


def _check_same(answers: list[tuple[Any, Any]], same_in_double: Callable[[], bool]) -> None:
    """Raise UntraceableNetwork if the graph's results differ from the network's by more than rounding."""
    for computed, expected in answers:
        if not all(want.isfinite().all() for want in tree_leaves(expected) if isinstance(want, Tensor)):
            raise ValueError("the network maps images of noise to NaN or Inf: it cannot be quantized")
        error, largest = _difference(computed, expected)
        if error <= _TOLERANCE * max(largest, 1e-6):
            continue
        if same_in_double():
            log.info("in float32, sums in another order change the network's outputs by %.3g of %.3g", error, largest)
            return
        raise UntraceableNetwork(
            f"the traced network differs from the original by {error:.3g} where outputs reach "
            f"{largest:.3g}. Something in it changes from call to call or is hidden from tracing: random "
            "numbers, a path chosen by Python values, an operation in place on a view of another tensor, a hook"
        )


def _difference(computed: Any, expected: Any) -> tuple[float, float]:
    """Return the largest difference between tensors, infinite if shapes differ, and the largest value expected."""
    error = largest = 0.0
    for got, want in zip(tree_leaves(computed), tree_leaves(expected), strict=True):
        if isinstance(want, Tensor) and want.numel():
            same = isinstance(got, Tensor) and got.shape == want.shape
            error = max(error, (got - want).abs().max().item() if same else math.inf)
            largest = max(largest, want.abs().max().item())
    return error, largest


def _same_in_double(net: nn.Module, noise: Tensor, known_sizes: bool) -> bool:
    """Return whether a trace without folding computes the same as the network in float64, where rounding is negligible.

    Without batch norms, values can grow so that float32 keeps little of them: 2 correct orders of a sum then differ.
    """
    net, noise = private_copy(net).double(), noise.double()
    try:
        expected = [net(images.clone()) for images in (noise, noise[:1])]
        make_weights_plain(net)
        graph = trace(net.double(), noise, known_sizes)
        to_normal_form(graph)
        found = [_difference(graph(images), want) for images, want in zip((noise, noise[:1]), expected, strict=True)]
    except (RuntimeError, ValueError):  # the network converts to float32 itself
        return False
    return all(error <= _TOLERANCE * max(largest, 1e-6) for error, largest in found)


def _refuse_other_weights(graph: fx.GraphModule) -> None:
    """Raise ValueError if a module other than a convolution or linear layer multiplies with weights."""
    for node in graph.graph.nodes:
        module = called_module(graph, node)
        if module is None or isinstance(module, (*LAYERS, *NORMS)) or is_batch_norm(module):
            continue
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            raise ValueError(
                f"{node.target!r} is a {type(module).__name__}, whose weights cannot be quantized; convolutions and "
                "linear layers can. Write it with those, or quantize the part of the network before it"
            )


def left_in_float(graph: fx.GraphModule) -> list[str]:
    """Return the names of weights outside layers that are read in float, for products in `forward`.

    They are matrices among the parameters, or computed from these, which no method quantizes.
    """
    names: list[str] = []
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(graph)
            own = [str(node.target)] if is_matrix(value) else []
            names += own or node.meta.get("parameters", ())
    return list(dict.fromkeys(names))
