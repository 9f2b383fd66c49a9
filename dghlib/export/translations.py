"""The translation of each operation of a traced network to ONNX: a table, from operation to translation.

The translations themselves are in modules by kind of operation.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dghlib.export.calculations import (
    clamp,
    einsum,
    extreme,
    layer_norm,
    masked_fill,
    norm,
    normalize,
    not_equal,
    of_two,
    reduction,
    to_float,
    where,
)
from dghlib.export.elements import (
    arithmetic,
    clip,
    gelu,
    hardsigmoid,
    hardswish,
    prelu,
    silu,
    simple,
    softplus,
    with_setting,
)
from dghlib.export.indexing import expand, flip, pick, repeat, roll, select, stack, unbind, unfold
from dghlib.export.layers import float_layer, quantized_layer
from dghlib.export.movements import (
    channel_shuffle,
    concatenate,
    pad,
    permute,
    reshape,
    split,
    transpose,
)
from dghlib.export.norms import channel_affine, group_norm, matrix_product
from dghlib.export.onnx_graph import OnnxGraph, Translation, UnsupportedOperation
from dghlib.export.patches import from_patches, patches
from dghlib.export.reductions import adaptive_pooling, mean, pooling, softmax
from dghlib.export.resizing import interpolate, pixel_shuffle, pixel_unshuffle
from dghlib.quantizers.layers import QuantizedLayer
from dghlib.quantizers.operations import RESHAPES, ChannelAffine

_SIMPLE = {
    "Relu": (nn.ReLU, F.relu, torch.relu, "relu"),
    "Sigmoid": (nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"),
    "Tanh": (nn.Tanh, F.tanh, torch.tanh, "tanh"),
    "Mish": (nn.Mish, F.mish),
    "Selu": (nn.SELU, F.selu),
    "Neg": (operator.neg, torch.neg, "neg"),
    "Abs": (operator.abs, torch.abs, "abs"),
    "Sqrt": (torch.sqrt, "sqrt"),
    "Exp": (torch.exp, "exp"),
    "Log": (torch.log, "log"),
    "Floor": (torch.floor, "floor"),
    "Reciprocal": (torch.reciprocal, "reciprocal"),
    "Erf": (torch.erf, "erf"),
    "Not": (torch.logical_not, "logical_not", operator.invert),
}
_TRANSLATIONS: dict[Translation, tuple[Any, ...]] = {
    **{simple(operation): names for operation, names in _SIMPLE.items()},
    hardsigmoid: (nn.Hardsigmoid, F.hardsigmoid),
    hardswish: (nn.Hardswish, F.hardswish),
    channel_affine: (ChannelAffine,),
    clip(0.0, 6.0): (nn.ReLU6, F.relu6),
    clip(-1.0, 1.0): (nn.Hardtanh, F.hardtanh),
    silu: (nn.SiLU, F.silu),
    softplus: (nn.Softplus, F.softplus),
    gelu: (nn.GELU, F.gelu),
    prelu: (nn.PReLU, F.prelu),
    with_setting("LeakyRelu", "alpha", "negative_slope", 0.01): (nn.LeakyReLU, F.leaky_relu),
    with_setting("Elu", "alpha", "alpha", 1.0): (nn.ELU, F.elu),
    with_setting("Celu", "alpha", "alpha", 1.0): (nn.CELU, F.celu),
    arithmetic("Add"): (operator.add, torch.add, "add"),
    arithmetic("Sub"): (operator.sub, torch.sub, "sub"),
    arithmetic("Mul"): (operator.mul, torch.mul, "mul"),
    arithmetic("Div"): (operator.truediv, torch.div, "div"),
    pooling("MaxPool"): (nn.MaxPool1d, F.max_pool1d, nn.MaxPool2d, F.max_pool2d),
    pooling("AveragePool"): (nn.AvgPool1d, F.avg_pool1d, nn.AvgPool2d, F.avg_pool2d),
    adaptive_pooling("AveragePool"): (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
    adaptive_pooling("MaxPool"): (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d),
    mean: (torch.mean, "mean"),
    group_norm: (nn.GroupNorm, F.group_norm),
    softmax("Softmax"): (nn.Softmax, F.softmax, torch.softmax, "softmax"),
    softmax("LogSoftmax"): (nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax"),
    reshape: tuple(RESHAPES),
    permute: (torch.permute, "permute"),
    transpose: (torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.swapdims, "swapdims"),
    concatenate: (torch.cat, torch.concat),
    split: (torch.chunk, "chunk", torch.split, "split"),
    pick: (operator.getitem,),
    pad: (F.pad, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    interpolate: (F.interpolate, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    patches: (nn.Unfold, F.unfold),
    from_patches: (nn.Fold, F.fold),
    pixel_shuffle: (nn.PixelShuffle, F.pixel_shuffle),
    pixel_unshuffle: (nn.PixelUnshuffle, F.pixel_unshuffle),
    channel_shuffle: (nn.ChannelShuffle, F.channel_shuffle),
    matrix_product: (torch.matmul, "matmul", operator.matmul, torch.bmm, "bmm"),
    einsum: (torch.einsum,),
    layer_norm: (nn.LayerNorm, F.layer_norm, torch.layer_norm),
    select: (torch.select, "select", torch.narrow, "narrow", torch.index_select, "index_select"),
    unfold: ("unfold",),
    roll: (torch.roll, "roll"),
    flip: (torch.flip, "flip"),
    expand: ("expand", "expand_as"),
    repeat: ("repeat", torch.tile, "tile"),
    stack: (torch.stack,),
    unbind: (torch.unbind, "unbind"),
    clamp: (torch.clamp, "clamp", torch.clip, "clip", torch.clamp_min, "clamp_min", torch.clamp_max, "clamp_max"),
    reduction("ReduceSum"): (torch.sum, "sum"),
    reduction("ReduceMax"): (torch.amax, "amax"),
    reduction("ReduceMin"): (torch.amin, "amin"),
    extreme("Max"): (torch.max, "max", torch.maximum, "maximum"),
    extreme("Min"): (torch.min, "min", torch.minimum, "minimum"),
    norm: (torch.norm, "norm"),
    normalize: (F.normalize,),
    of_two("Pow"): (operator.pow, torch.pow, "pow"),
    of_two("Greater"): (operator.gt, torch.gt, "gt"),
    of_two("GreaterOrEqual"): (operator.ge, torch.ge, "ge"),
    of_two("Less"): (operator.lt, torch.lt, "lt"),
    of_two("LessOrEqual"): (operator.le, torch.le, "le"),
    of_two("Equal"): (operator.eq, torch.eq, "eq"),
    not_equal: (operator.ne, torch.ne, "ne"),
    where: (torch.where,),
    masked_fill: (torch.masked_fill, "masked_fill"),
    to_float: ("to", "float", "type", "type_as"),
}
BY_OPERATION = {name: translation for translation, names in _TRANSLATIONS.items() for name in names}


def translation_of(graph: OnnxGraph, node: fx.Node) -> Translation:
    """Return the translation of a node.

    Raises:
        UnsupportedOperation: there is none; the message names the place of the node in the network.
    """
    module = graph.module(node)
    if isinstance(module, QuantizedLayer):
        return quantized_layer
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear):
        return float_layer
    operation = type(module) if module is not None else node.target
    if operation in BY_OPERATION:
        return BY_OPERATION[operation]
    raise UnsupportedOperation(_explanation(node, operation))


def _explanation(node: fx.Node, operation: Any) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    place = f" in module {stack[-1][0]!r}" if stack else ""
    name = getattr(operation, "__name__", str(operation))
    return (
        f"{name} (node {node.name!r}{place}) cannot be written to ONNX here. Write it with operations that can "
        "(convolutions, linear layers, pooling, arithmetic, activation functions, reshapes, slices, concatenation), "
        "or export the part of the network before it"
    )


def constant_tensor(graph: OnnxGraph, node: fx.Node) -> str:
    """A tensor that the network keeps: a parameter or buffer that is read directly."""
    value: Any = operator.attrgetter(str(node.target))(graph.traced)
    if not isinstance(value, Tensor):
        raise UnsupportedOperation(f"{node.target} is a {type(value).__name__}, only tensors can be constants")
    kind = "float32" if value.is_floating_point() else "bool" if value.dtype is torch.bool else "int64"
    return graph.constant(str(node.target), value, dtype=kind)
