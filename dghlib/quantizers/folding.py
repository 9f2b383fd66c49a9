"""Folding: scales and shifts of a layer's output channels become part of the layer's weight and bias.

They are a batch norm, a batch norm written by hand with constants (frozen ones, as in detectors), a LayerScale, or any
other constant scale or shift, of all channels or of each. A layer takes it in if the scale or shift is the only reader
of the layer's output, and reads all of it.

If a batch norm reads a concatenation of layers' outputs, as in MixNet, each layer takes in its part of the batch norm.

A batch norm without a layer to fold into stays in the graph as a layer of its own. This happens after a concatenation
of blocks, as in DenseNet, and if the output of the convolution has other readers or several batch norms. Such a batch
norm is an affine map per channel, which hardware computes with wide numbers, as it does biases. Its output is
quantized, its parameters are not.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from dghlib.quantizers.layers import frozen, scale_output
from dghlib.quantizers.operations import ChannelAffine, Layer, called_module, does, is_batch_norm, layer_calls


def fold(graph: fx.GraphModule) -> None:
    """Fold all foldable batch norms, scales and shifts into the layers before them, in place.

    Raises:
        ValueError: a batch norm keeps no running statistics, so that its output depends on the batch.
    """
    for node in list(graph.graph.nodes):
        _move_before_join(graph, node)
    calls: dict[Any, list[fx.Node]] = defaultdict(list)
    for call, _ in layer_calls(graph):
        calls[call.target].append(call)
    for node in list(graph.graph.nodes):
        if not node.all_input_nodes:
            continue  # folded already, with an earlier call of the same layer
        module = called_module(graph, node)
        if module is not None and is_batch_norm(module):
            _fold_batch_norm(graph, node, module, calls)
        elif (affine := _affine(graph, node)) is not None:
            _fold_affine(graph, node, affine, calls)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _move_before_join(graph: fx.GraphModule, node: fx.Node) -> None:
    """Replace a batch norm of concatenated channels by one for each part, if it alone reads the layers' outputs."""
    norm: Any = called_module(graph, node)
    join = node.all_input_nodes[0] if node.all_input_nodes else node
    if norm is None or not is_batch_norm(norm) or norm.running_mean is None or len(join.users) != 1:
        return
    axis = join.kwargs.get("dim", join.args[1] if len(join.args) > 1 else 0)
    parts: Any = join.args[0] if does(graph, join, {torch.cat, torch.concat, torch.concatenate}) else ()
    layers: list[Any] = [called_module(graph, part) for part in parts if isinstance(part, fx.Node)]
    maps = all(isinstance(layer, Layer) and not isinstance(layer, nn.Linear) for layer in layers)
    if axis != 1 or not layers or len(layers) != len(parts) or not maps or any(len(part.users) != 1 for part in parts):
        return
    pieces = _parts_of_norm(norm, [layer.out_channels for layer in layers])
    for number, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
        name = f"{node.name}_part{number}"
        graph.add_submodule(name, piece)
        with graph.graph.inserting_before(join):
            call = graph.graph.call_module(name, (part,))
        call.meta = dict(part.meta)
        join.replace_input_with(part, call)
    node.replace_all_uses_with(join)
    graph.graph.erase_node(node)


def _parts_of_norm(norm: Any, channels: list[int]) -> list[nn.BatchNorm2d]:
    """Return batch norms with the given numbers of channels that together equal a batch norm."""
    names = [name for name in ("running_mean", "running_var", "weight", "bias") if getattr(norm, name) is not None]
    pieces = [nn.BatchNorm2d(count, eps=norm.eps, affine=norm.weight is not None).eval() for count in channels]
    for name in names:
        for piece, values in zip(pieces, getattr(norm, name).detach().split(channels), strict=True):
            setattr(piece, name, frozen(values) if name in ("weight", "bias") else values.clone())
    return pieces


def _fold_batch_norm(graph: fx.GraphModule, node: fx.Node, batch_norm: Any, calls: Mapping[Any, list[fx.Node]]) -> None:
    if batch_norm.running_mean is None:
        raise ValueError(
            f"batch norm {node.target!r} keeps no running statistics, so its output depends on the other "
            "images of a batch: train it with track_running_stats=True"
        )
    siblings = calls.get(node.all_input_nodes[0].target, [])
    readers = [reader for call in siblings for reader in call.users]
    slope = (batch_norm.running_var.double() + batch_norm.eps).rsqrt()
    if batch_norm.weight is not None:
        slope = slope * batch_norm.weight.double()
    if {reader.target for reader in readers} != {node.target}:
        shift = -batch_norm.running_mean.double() * slope
        shift = shift if batch_norm.bias is None else shift + batch_norm.bias.double()
        graph.set_submodule(str(node.target), ChannelAffine(slope, shift))
        return
    layer: Any = graph.get_submodule(str(siblings[0].target))
    bias = (_bias(layer, slope) - batch_norm.running_mean.double()) * slope
    if batch_norm.bias is not None:
        bias = bias + batch_norm.bias.double()
    scale_output(layer, slope)
    layer.bias = frozen(bias)
    for call in siblings:
        call.meta["moments"] = moments_after(batch_norm)
    for reader in readers:
        reader.replace_all_uses_with(reader.all_input_nodes[0])
        graph.graph.erase_node(reader)


def moments_after(batch_norm: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of a batch norm's output on its training data."""
    spread = (batch_norm.running_var / (batch_norm.running_var + batch_norm.eps)).sqrt()
    if batch_norm.weight is not None:
        spread = spread * batch_norm.weight.detach().abs()
    mean = torch.zeros_like(spread) if batch_norm.bias is None else batch_norm.bias.detach()
    return mean.float(), spread.float()


def _bias(layer: Layer, like: Tensor) -> Tensor:
    return layer.bias.double() if layer.bias is not None else torch.zeros_like(like)


class _Affine(NamedTuple):
    """The function of a node: its input times `scale` plus `shift`, which broadcast against it, in float64."""

    read: fx.Node
    scale: Tensor
    shift: Tensor


def _affine(graph: fx.GraphModule, node: fx.Node) -> _Affine | None:
    """Return the function of a node that scales or shifts a tensor of the network by constants."""
    compute = _AFFINE.get(node.target) if node.op in ("call_function", "call_method") else None
    if compute is None or node.kwargs.keys() - {"other"}:
        return None
    operands = [*node.args, *node.kwargs.values()]
    values = [_constant(graph, operand) for operand in operands]
    unknown = [place for place, value in enumerate(values) if value is None]
    if len(unknown) != 1 or not isinstance(read := operands[unknown[0]], fx.Node):
        return None
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    at_zero, at_one = (compute(*[each if v is None else v for v in values]) for each in (zero, one))
    if at_zero is None or not at_zero.isfinite().all():
        return None  # a constant divided by a tensor
    return _Affine(read, at_one - at_zero, at_zero)


def _constant(graph: fx.GraphModule, operand: Any) -> Tensor | None:
    """Return a number or a tensor of the graph as float64; None for values that depend on the images."""
    if isinstance(operand, fx.Node):
        if operand.op != "get_attr":
            return None
        operand = operator.attrgetter(str(operand.target))(graph)
    return torch.as_tensor(operand).double() if isinstance(operand, Tensor | int | float) else None


_AFFINE: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((operator.add, torch.add, "add"), operator.add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), operator.sub),
    **dict.fromkeys((operator.mul, torch.mul, "mul", torch.multiply), operator.mul),
    **dict.fromkeys((operator.truediv, torch.div, "div"), operator.truediv),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), operator.neg),
    **dict.fromkeys((torch.addcmul, "addcmul"), lambda start, one, other: start + one * other),
}


def _fold_affine(graph: fx.GraphModule, node: fx.Node, affine: _Affine, calls: Mapping[Any, list[fx.Node]]) -> None:
    found = _layer_behind(graph, affine.read)
    if found is None or len(affine.read.users) != 1 or len(calls[found[0].target]) != 1:
        return
    call, axis = found
    layer: Any = graph.get_submodule(str(call.target))
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    factors = [_of_channels(value, axis, len(affine.read.meta["shape"]), channels) for value in affine[1:]]
    scale, shift = factors
    if scale is None or shift is None:
        return
    layer.bias = frozen(_bias(layer, scale) * scale + shift)
    if (scale != 1).any():
        scale_output(layer, scale)
    if "moments" in call.meta:
        mean, spread = call.meta["moments"]
        call.meta["moments"] = (mean * scale + shift).float(), (spread * scale.abs()).float()
    node.replace_all_uses_with(affine.read)
    graph.graph.erase_node(node)


def _of_channels(value: Tensor, axis: int, ndim: int, channels: int) -> Tensor | None:
    """Return a value for each channel (C,), if a constant is equal along all axes except that of the channels."""
    if value.ndim > ndim:
        return None
    shape = [1] * (ndim - value.ndim) + list(value.shape)
    if shape[axis] not in (1, channels) or any(size != 1 for place, size in enumerate(shape) if place != axis):
        return None
    return value.flatten().expand(channels)


def _layer_behind(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, int] | None:
    """Return the call of a layer that computed a tensor, and the axis of its channels; axes may be permuted between."""
    module = called_module(graph, node)
    if isinstance(module, Layer):
        return node, len(node.meta["shape"]) - 1 if isinstance(module, nn.Linear) else 1
    order = _order_of_axes(node)
    if order is None or len(node.all_input_nodes[0].users) != 1:
        return None
    found = _layer_behind(graph, node.all_input_nodes[0])
    return None if found is None else (found[0], order.index(found[1]))


def _order_of_axes(node: fx.Node) -> list[int] | None:
    """Return the input axis of each axis of a tensor, if the node only permutes axes."""
    count = len(node.meta.get("shape", ()))
    if node.op not in ("call_function", "call_method") or node.kwargs or "shape" not in node.meta:
        return None
    numbers: Any = node.args[1:]
    if node.target in (torch.permute, "permute"):
        numbers = numbers[0] if isinstance(numbers[0], list | tuple) else numbers
        return [number % count for number in numbers]
    if node.target in (torch.transpose, "transpose"):
        order = list(range(count))
        first, second = (number % count for number in numbers)
        order[first], order[second] = second, first
        return order
    return None
