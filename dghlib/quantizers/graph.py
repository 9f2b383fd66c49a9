"""The graph that all quantizers work on: traced, in normal form, batch norms folded into the layers before.

A batch norm that has no layer of its own to fold into (one after a concatenation, as in DenseNet; one whose
convolution is also read elsewhere, or serves several batch norms) stays in the graph as a layer of its own:
an affine map per channel, which hardware computes while numbers are wide, as it does biases. Its output is
quantized, its parameters are not.
"""

import logging
from collections import defaultdict
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dghlib.models import FloatModel
from dghlib.quantizers.layers import frozen, scale_output
from dghlib.quantizers.normal_form import to_normal_form
from dghlib.quantizers.operations import LAYERS, Layer, called_module, is_batch_norm, layer_calls
from dghlib.quantizers.sites import mark_sites
from dghlib.quantizers.sizes import read_batch_size_nearby
from dghlib.quantizers.tracing import UntraceableNetwork, check_one_input, make_weights_plain, trace
from dghlib.running.batchnorm import check_finite
from dghlib.running.copies import output_for, private_copy, to_channels_last

log = logging.getLogger(__name__)
_IMAGES = 3  # seldom a size that a network has of its own
_TOLERANCE = 1e-3  # of the largest output; folding costs about 1e-6


def folded_graph(model: FloatModel) -> fx.GraphModule:
    """Return a graph that computes what `model.net` computes in eval mode, without the batch norms that fold.

    A private copy: the model is left as it is. A node that holds a floating-point tensor has its shape, for
    three images, in `node.meta["shape"]`; a call of a layer that took in a batch norm has in `node.meta["moments"]`
    what `moments_after` says of it; sites are marked (see `sites`). Checked against the network on three images of
    noise, for which hooks of the network are called once: they may compute its weights.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network, or the graph computes something else.
        ValueError: several inputs, or images of another shape; NaN or Inf in weights or buffers; a batch norm without
            running statistics.
    """
    check_finite(model.net)
    check_one_input(model.net)
    net = private_copy(model.net)
    noise = torch.randn(_IMAGES, *model.image_shape, generator=torch.Generator().manual_seed(0)).to(device_of(net))
    with torch.no_grad():
        expected = output_for(net, noise.clone())  # which a network may write to
        make_weights_plain(net)
        graph = trace(net)
        to_normal_form(graph)
        fold_batch_norms(graph)
        to_channels_last(graph)  # 1.2 to 1.8 times as fast on a CPU
        read_batch_size_nearby(graph, noise)
        computed = _ShapeRecorder(graph).run(noise)
    mark_sites(graph)
    _check_same(computed, expected)
    _tell_what_stays_float(graph)
    return graph


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a network's first parameter, or the CPU if it has none."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold every batch norm that can be into the convolution or linear layer before it, in place.

    A layer takes in a batch norm if all calls of the layer are read by that batch norm and by nothing else.

    Raises:
        ValueError: a batch norm keeps no running statistics, so that its output depends on the batch.
    """
    calls: dict[Any, list[fx.Node]] = defaultdict(list)
    for call, _ in layer_calls(graph):
        calls[call.target].append(call)
    for node in list(graph.graph.nodes):
        batch_norm = called_module(graph, node)
        if batch_norm is None or not is_batch_norm(batch_norm) or not node.all_input_nodes:
            continue  # the last: folded already, with an earlier call of the same layer
        if batch_norm.running_mean is None:
            raise ValueError(
                f"batch norm {node.target!r} keeps no running statistics, so its output depends on the other "
                "images of a batch: train it with track_running_stats=True"
            )
        siblings = calls.get(node.all_input_nodes[0].target, [])
        readers = [reader for call in siblings for reader in call.users]
        if {reader.target for reader in readers} == {node.target}:
            _fold(graph.get_submodule(str(siblings[0].target)), batch_norm)
            for call in siblings:
                call.meta["moments"] = moments_after(batch_norm)
            for reader in readers:
                reader.replace_all_uses_with(reader.all_input_nodes[0])
                graph.graph.erase_node(reader)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _fold(layer: Layer | Any, batch_norm: Any) -> None:
    slope = (batch_norm.running_var.double() + batch_norm.eps).rsqrt()
    if batch_norm.weight is not None:
        slope = slope * batch_norm.weight.double()
    bias = layer.bias.double() if layer.bias is not None else torch.zeros_like(slope)
    bias = (bias - batch_norm.running_mean.double()) * slope
    if batch_norm.bias is not None:
        bias = bias + batch_norm.bias.double()
    scale_output(layer, slope)
    layer.bias = frozen(bias)


def moments_after(batch_norm: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of what leaves a batch norm on what it was trained on."""
    spread = (batch_norm.running_var / (batch_norm.running_var + batch_norm.eps)).sqrt()
    if batch_norm.weight is not None:
        spread = spread * batch_norm.weight.detach().abs()
    mean = torch.zeros_like(spread) if batch_norm.bias is None else batch_norm.bias.detach()
    return mean.float(), spread.float()


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point():
            n.meta["shape"] = tuple(result.shape)
        return result


def _check_same(computed: Any, expected: Any) -> None:
    for got, want in zip(tree_leaves(computed), tree_leaves(expected), strict=True):
        if not isinstance(want, Tensor):
            continue
        if not want.isfinite().all():
            raise ValueError("the network maps images of noise to NaN or Inf: it cannot be quantized")
        error = (got - want).abs().max().item()
        if error > _TOLERANCE * max(want.abs().max().item(), 1e-6):
            raise UntraceableNetwork(
                f"the traced network differs from the original by {error:.3g} where outputs reach "
                f"{want.abs().max():.3g}. Something in it changes from call to call or is hidden from tracing: random "
                "numbers, a path chosen by Python values, an operation in place on a view of another tensor, a hook"
            )


def _tell_what_stays_float(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        module = called_module(graph, node)
        if node.op == "get_attr":
            read = [attrgetter(str(node.target))(graph)]
        elif module is not None and not isinstance(module, LAYERS):
            read = list(module.parameters())
        else:
            continue
        if any(isinstance(value, nn.Parameter) and value.ndim > 1 for value in read):
            kind = "read as it is" if module is None else type(module).__name__
            log.warning("the weights of %s (%s) stay in float", node.target, kind)
