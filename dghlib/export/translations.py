"""How each operation of a traced network is written in ONNX: one table, from operation to translation.

A translation gets the graph under construction and the node, appends what it needs, and returns the name of the
value that it made (or of several). Shapes come from tracing; the first axis is the batch, of any size.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation, batched, both_sides, pair
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import QuantizedLayer, channel_axis
from dghlib.quantizers.operations import MOVEMENTS, RESHAPES, does, is_batch_norm

Translation = Callable[[OnnxGraph, fx.Node], str | list[str]]


def source(graph: OnnxGraph, node: fx.Node) -> str:
    """Return the ONNX value of the tensor that a node reads first."""
    return graph.value(node.args[0] if node.args else node.kwargs["input"], f"{node.name}.input")


def arguments(node: fx.Node) -> Any:
    """Return the arguments of a call; what they are depends on the operation."""
    return node.args


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape, for some images, of the tensor that a node holds; a quantizer's is that of what it reads."""
    return node.meta["shape"] if "shape" in node.meta else shape_of(node.all_input_nodes[0])


# Layers


def quantized_layer(graph: OnnxGraph, node: fx.Node) -> str:
    """A layer with integer weights. One that is called twice has them twice: onnxruntime fails on shared ones."""
    module: Any = graph.module(node)
    path = str(node.target)
    name = f"{path}.weight" if f"{path}.weight.codes" not in graph.constants else f"{node.name}.weight"
    weight = graph.quantized_weight(module.layer.weight, module.weight_quantizer, channel_axis(module.layer), name)
    return _sum_of_products(graph, node, module.layer, weight, bias_apart=_bias_overflows(graph, node, module))


def _bias_overflows(graph: OnnxGraph, node: fx.Node, module: Any) -> bool:
    """Say whether a bias is too large for 32 bits on the grid of the products.

    That is how onnxruntime rewrites it, without a look at its size: an addition of its own is left alone.
    """
    read = node.all_input_nodes[0]
    while does(graph.traced, read, MOVEMENTS):
        read = read.all_input_nodes[0]
    grid = graph.module(read)
    bias = module.layer.bias
    if bias is None or not isinstance(grid, UniformQuantizer):
        return False
    steps = grid.scale * module.weight_quantizer.scale.flatten()
    steps = steps.repeat(len(bias) // len(steps))  # a transposed convolution has those of one group
    return bool((bias.abs() >= 2**31 * steps).any())


def float_layer(graph: OnnxGraph, node: fx.Node) -> str:
    """A layer in float."""
    layer: Any = graph.module(node)
    return _sum_of_products(graph, node, layer, graph.constant(f"{node.target}.weight", layer.weight))


def _sum_of_products(graph: OnnxGraph, node: fx.Node, layer: Any, weight: str, bias_apart: bool = False) -> str:
    inputs = [source(graph, node), weight]
    if layer.bias is None or not bias_apart:
        bias = None if layer.bias is None else graph.constant(f"{node.target}.bias", layer.bias)
        return _product(graph, node, layer, inputs, bias, node.name)
    column = layer.bias if isinstance(layer, nn.Linear) else layer.bias.reshape(-1, *[1] * (layer.weight.ndim - 2))
    product = _product(graph, node, layer, inputs, None, f"{node.name}.product")
    return graph.add("Add", [product, graph.constant(f"{node.target}.bias", column)], node.name)


def _product(graph: OnnxGraph, node: fx.Node, layer: Any, inputs: list[str], bias: str | None, name: str) -> str:
    if isinstance(layer, nn.Linear):
        return _linear(graph, node, inputs, bias, name)
    if layer.padding_mode != "zeros":
        raise UnsupportedOperation(
            f"convolution {node.target} pads with mode {layer.padding_mode!r}, only zeros can be"
        )
    attributes = {"strides": list(layer.stride), "dilations": list(layer.dilation), "group": layer.groups}
    attributes["pads"] = _pads(layer)
    operation = "Conv"
    if isinstance(layer, nn.ConvTranspose2d):
        operation = "ConvTranspose"
        attributes["output_padding"] = list(layer.output_padding)
    return graph.add(operation, inputs + ([bias] if bias else []), name, **attributes)


def _pads(layer: Any) -> list[int]:
    """Return the zeros around a convolution's input: all beginnings, then all ends, which get the odd ones."""
    if layer.padding == "valid":
        return [0] * 2 * len(layer.kernel_size)
    if layer.padding != "same":
        return list(layer.padding) * 2
    totals = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def _linear(graph: OnnxGraph, node: fx.Node, inputs: list[str], bias: str | None, name: str) -> str:
    """Gemm takes matrices; of more axes the last is multiplied, by a transposed weight."""
    if len(shape_of(node)) == 2:
        return graph.add("Gemm", inputs + ([bias] if bias else []), name, transB=1)
    transposed = graph.add("Transpose", [inputs[1]], f"{node.name}.weight_t", perm=[1, 0])
    product = graph.add("MatMul", [inputs[0], transposed], f"{node.name}.products" if bias else name)
    return graph.add("Add", [product, bias], name) if bias else product


def batch_norm(graph: OnnxGraph, node: fx.Node) -> str:
    """A batch norm that could not be folded."""
    module: Any = graph.module(node)
    size = len(module.running_mean)
    weight = module.weight if module.weight is not None else torch.ones(size)
    bias = module.bias if module.bias is not None else torch.zeros(size)
    values = {"weight": weight, "bias": bias, "mean": module.running_mean, "var": module.running_var}
    names = [graph.constant(f"{node.target}.{name}", value) for name, value in values.items()]
    return graph.add("BatchNormalization", [source(graph, node), *names], node.name, epsilon=module.eps)


def group_norm(graph: OnnxGraph, node: fx.Node) -> str:
    """A norm over groups of channels of each image, as the heads of detectors have."""
    module: Any = graph.module(node)
    if module is None or module.weight is None:
        raise UnsupportedOperation(f"{node.name}: a group norm must be a module nn.GroupNorm with a weight and a bias")
    names = [graph.constant(f"{node.target}.{name}", getattr(module, name)) for name in ("weight", "bias")]
    settings = {"num_groups": module.num_groups, "epsilon": module.eps}
    return graph.add("GroupNormalization", [source(graph, node), *names], node.name, **settings)


# Element by element


def simple(operation: str, **attributes: Any) -> Translation:
    """Return the translation of an operation that ONNX has, on one tensor, without settings of its own."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        return graph.add(operation, [source(graph, node)], node.name, **attributes)

    return translate


def with_setting(operation: str, attribute: str, name: str, default: float) -> Translation:
    """Return the translation of an operation with one number, that torch and ONNX call by different names."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        number = float(graph.settings(node, name).get(name, default))
        return graph.add(operation, [source(graph, node)], node.name, **{attribute: number})

    return translate


def clip(low: float, high: float) -> Translation:
    """Return the translation of relu6 and hardtanh, whose ends may be set."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        ends = {"min_val": low, "max_val": high} | graph.settings(node, "min_val", "max_val")
        least, most = (graph.constant(f"{node.name}.{name}", float(end)) for name, end in ends.items())
        if any(_is_four_bits(graph.module(reader)) for reader in node.users):
            # onnxruntime cannot fuse a Clip into a quantization to 4 bits, and fails when it tries
            above = graph.add("Max", [source(graph, node), least], f"{node.name}.above")
            return graph.add("Min", [above, most], node.name)
        return graph.add("Clip", [source(graph, node), least, most], node.name)

    return translate


def _is_four_bits(module: nn.Module | None) -> bool:
    return isinstance(module, UniformQuantizer) and module.bits == 4


def silu(graph: OnnxGraph, node: fx.Node) -> str:
    """X sigmoid(x)."""
    value = source(graph, node)
    return graph.add("Mul", [value, graph.add("Sigmoid", [value], f"{node.name}.sigmoid")], node.name)


def softplus(graph: OnnxGraph, node: fx.Node) -> str:
    """The logarithm of 1 + exp(beta x), divided by beta."""
    value, beta = source(graph, node), float(graph.settings(node, "beta", "threshold").get("beta", 1))
    if beta == 1:
        return graph.add("Softplus", [value], node.name)
    steepness = graph.constant(f"{node.name}.beta", beta)
    steep = graph.add("Mul", [value, steepness], f"{node.name}.steep")
    return graph.add("Div", [graph.add("Softplus", [steep], f"{node.name}.soft"), steepness], node.name)


def gelu(graph: OnnxGraph, node: fx.Node) -> str:
    """Gelu, exact or by tanh."""
    how = graph.settings(node, "approximate").get("approximate", "none")
    return graph.add("Gelu", [source(graph, node)], node.name, approximate=how)


def prelu(graph: OnnxGraph, node: fx.Node) -> str:
    """PReLU, its slopes along the channels."""
    module: Any = graph.module(node)
    if module is None:
        raise UnsupportedOperation(f"{node.name} calls prelu as a function; use the module nn.PReLU")
    shape = (-1, *[1] * (len(shape_of(node)) - 2))
    slope = graph.constant(f"{node.target}.weight", module.weight.reshape(shape))
    return graph.add("PRelu", [source(graph, node), slope], node.name)


def arithmetic(operation: str) -> Translation:
    """Return the translation of +, -, * and /, of two tensors or a tensor and a number."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            raise UnsupportedOperation(f"{node.name} has settings that its translation does not know: {node.kwargs}")
        second = node.args[1] if len(node.args) > 1 else node.kwargs["other"]
        return graph.add(operation, [source(graph, node), graph.value(second, f"{node.name}.other")], node.name)

    return translate


# Pooling and averages


def pooling(operation: str) -> Translation:
    """Return the translation of maximum and average pooling over windows."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        names = ["kernel_size", "stride", "padding", "dilation", "ceil_mode"]
        if operation == "AveragePool":
            names = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"]
        found = graph.settings(node, *names)
        if found.get("divisor_override"):
            raise UnsupportedOperation(f"{node.name} overrides the divisor of an average")
        attributes: dict[str, Any] = {
            "kernel_shape": pair(found["kernel_size"]),
            "strides": pair(found.get("stride") or found["kernel_size"]),
            "pads": both_sides(found.get("padding", 0)),
            "ceil_mode": int(found.get("ceil_mode", False)),
        }
        if operation == "AveragePool":
            # without padding both mean the same, but onnxruntime would count what overhangs with ceil_mode
            counts = found.get("count_include_pad", True) and any(attributes["pads"])
            attributes["count_include_pad"] = int(counts)
        else:
            attributes["dilations"] = pair(found.get("dilation", 1))
        return graph.add(operation, [source(graph, node)], node.name, **attributes)

    return translate


def adaptive_pooling(operation: str) -> Translation:
    """Return the translation of pooling to a fixed size, where windows do not overlap."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        before, after = shape_of(node.all_input_nodes[0])[2:], shape_of(node)[2:]
        if any(size % windows for size, windows in zip(before, after, strict=True)):
            raise UnsupportedOperation(f"{node.name} pools {before} to {after}: its windows overlap")
        window = [size // windows for size, windows in zip(before, after, strict=True)]
        return graph.add(operation, [source(graph, node)], node.name, kernel_shape=window, strides=window)

    return translate


def mean(graph: OnnxGraph, node: fx.Node) -> str:
    """The average over some axes."""
    found = graph.settings(node, "dim", "keepdim")
    axes = found["dim"] if isinstance(found.get("dim"), list | tuple) else [found["dim"]]
    names = [source(graph, node), graph.constant(f"{node.name}.axes", list(axes), dtype="int64")]
    return graph.add("ReduceMean", names, node.name, keepdims=int(found.get("keepdim", False)))


def softmax(operation: str) -> Translation:
    """Return the translation of softmax or its logarithm."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        return graph.add(operation, [source(graph, node)], node.name, axis=int(graph.settings(node, "dim")["dim"]))

    return translate


# Movements


def reshape(graph: OnnxGraph, node: fx.Node) -> str:
    """Every operation that only changes the shape, to that which was seen in tracing."""
    shape = graph.constant(f"{node.name}.shape", batched(shape_of(node)), dtype="int64")
    return graph.add("Reshape", [source(graph, node), shape], node.name)


def permute(graph: OnnxGraph, node: fx.Node) -> str:
    """A new order of the axes."""
    order: Any = node.kwargs.get("dims") or arguments(node)[1:]
    order = order[0] if isinstance(order[0], list | tuple) else order
    axes = [axis % len(order) for axis in order]
    return graph.add("Transpose", [source(graph, node)], node.name, perm=axes)


def transpose(graph: OnnxGraph, node: fx.Node) -> str:
    """Two axes change places."""
    count = len(shape_of(node))
    axes = list(range(count))
    found = graph.settings(node, "dim0", "dim1")
    first, second = found["dim0"] % count, found["dim1"] % count
    axes[first], axes[second] = second, first
    return graph.add("Transpose", [source(graph, node)], node.name, perm=axes)


def concatenate(graph: OnnxGraph, node: fx.Node) -> str:
    """Tensors side by side."""
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    names = [graph.value(part, f"{node.name}.{k}") for k, part in enumerate(parts)]
    return graph.add("Concat", names, node.name, axis=int(graph.settings(node, "dim").get("dim", 0)))


def split(graph: OnnxGraph, node: fx.Node) -> list[str]:
    """One tensor in several parts, whose sizes are those of the parts that are read."""
    found = graph.settings(node, "size", "dim")
    axis, amount = int(found.get("dim", 0)), found["size"]
    whole = shape_of(node.all_input_nodes[0])[axis]
    if node.target in (torch.chunk, "chunk"):
        amount = -(-whole // amount)
    sizes = list(amount) if isinstance(amount, list | tuple) else [amount] * (whole // amount)
    sizes += [whole - sum(sizes)] if sum(sizes) < whole else []
    names = [f"{node.name}.{k}" for k in range(len(sizes))]
    length = graph.constant(f"{node.name}.sizes", sizes, dtype="int64")
    graph.add_several("Split", [source(graph, node), length], names, node.name, axis=axis)
    return names


def pick(graph: OnnxGraph, node: fx.Node) -> str:
    """`x[...]`: one of several tensors, or a part of one, cut out by slices with positive steps."""
    origin, index = arguments(node)
    held = graph.values[origin]
    if isinstance(held, list):
        return held[index]
    slices = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, slice) for part in slices):
        raise UnsupportedOperation(f"{node.name} picks {index!r}; of a tensor only slices such as x[:, ::2] can be")
    whole = torch.iinfo(torch.int64).max
    starts = [part.start or 0 for part in slices]
    ends = [whole if part.stop is None else part.stop for part in slices]
    steps = [part.step or 1 for part in slices]
    values = {"starts": starts, "ends": ends, "axes": list(range(len(slices))), "steps": steps}
    names = [graph.constant(f"{node.name}.{name}", value, dtype="int64") for name, value in values.items()]
    return graph.add("Slice", [held, *names], node.name)


def pad(graph: OnnxGraph, node: fx.Node) -> str:
    """Zeros, or copies, around a tensor."""
    found = graph.settings(node, "pad", "mode", "value", "padding")
    module_modes: dict[Any, str] = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
    mode = module_modes.get(type(graph.module(node)), found.get("mode", "constant"))
    amounts = found["pad"] if "pad" in found else found["padding"]
    pairs = [(amounts[k], amounts[k + 1]) for k in range(0, len(amounts), 2)][::-1]  # torch has the last axis first
    pairs = [(0, 0)] * (len(shape_of(node)) - len(pairs)) + pairs
    pads = [before for before, _ in pairs] + [after for _, after in pairs]
    names = [source(graph, node), graph.constant(f"{node.name}.pads", pads, dtype="int64")]
    if mode == "constant":
        names.append(graph.constant(f"{node.name}.value", float(found.get("value") or 0.0)))
    return graph.add("Pad", names, node.name, mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode))


def nearest_upsampling(graph: OnnxGraph, node: fx.Node) -> str:
    """Nearest-neighbour upsampling, by the factors that are given or to the size that was seen in tracing."""
    found = graph.settings(node, "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    if (mode := found.get("mode", "nearest")) != "nearest":
        raise UnsupportedOperation(f"{node.name} interpolates with mode {mode!r}, only 'nearest' can be")
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    factors = [new / old for new, old in zip(after[2:], before[2:], strict=True)]
    if (given := found.get("scale_factor")) and not found.get("recompute_scale_factor"):
        factors = (
            [float(factor) for factor in given] if isinstance(given, list | tuple) else [float(given)] * len(factors)
        )
    factors = [1.0, 1.0, *factors]
    names = [source(graph, node), "", graph.constant(f"{node.name}.scales", factors)]
    settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.add("Resize", names, node.name, mode="nearest", **settings)


def channel_shuffle(graph: OnnxGraph, node: fx.Node) -> str:
    """Channels of several groups take turns."""
    _, channels, *sides = shape_of(node)
    groups = graph.settings(node, "groups")["groups"]
    inner = graph.constant(f"{node.name}.grouped", [-1, groups, channels // groups, *sides], dtype="int64")
    grouped = graph.add("Reshape", [source(graph, node), inner], f"{node.name}.in_groups")
    turned = graph.add("Transpose", [grouped], f"{node.name}.turned", perm=[0, 2, 1, *range(3, 3 + len(sides))])
    shape = graph.constant(f"{node.name}.shape", batched(shape_of(node)), dtype="int64")
    return graph.add("Reshape", [turned, shape], node.name)


def matrix_product(graph: OnnxGraph, node: fx.Node) -> str:
    """The product of two tensors of the network."""
    return graph.add("MatMul", [source(graph, node), graph.value(node.args[1], f"{node.name}.other")], node.name)


_SIMPLE_ACTIVATIONS = {
    "Relu": (nn.ReLU, F.relu, torch.relu, "relu"),
    "Sigmoid": (nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"),
    "Tanh": (nn.Tanh, F.tanh, torch.tanh, "tanh"),
    "HardSwish": (nn.Hardswish, F.hardswish),
    "Mish": (nn.Mish, F.mish),
    "Selu": (nn.SELU, F.selu),
}
_TRANSLATIONS: dict[Translation, tuple[Any, ...]] = {
    **{simple(operation): names for operation, names in _SIMPLE_ACTIVATIONS.items()},
    simple("HardSigmoid", alpha=1 / 6, beta=0.5): (nn.Hardsigmoid, F.hardsigmoid),
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
    pooling("MaxPool"): (nn.MaxPool2d, F.max_pool2d),
    pooling("AveragePool"): (nn.AvgPool2d, F.avg_pool2d),
    adaptive_pooling("AveragePool"): (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
    adaptive_pooling("MaxPool"): (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d),
    mean: (torch.mean, "mean"),
    group_norm: (nn.GroupNorm, F.group_norm),
    softmax("Softmax"): (nn.Softmax, F.softmax, torch.softmax, "softmax"),
    softmax("LogSoftmax"): (nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax"),
    reshape: tuple(RESHAPES),
    permute: (torch.permute, "permute"),
    transpose: (torch.transpose, "transpose"),
    concatenate: (torch.cat, torch.concat),
    split: (torch.chunk, "chunk", torch.split, "split"),
    pick: (operator.getitem,),
    pad: (F.pad, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    nearest_upsampling: (F.interpolate, nn.Upsample, nn.UpsamplingNearest2d),
    channel_shuffle: (nn.ChannelShuffle, F.channel_shuffle),
    matrix_product: (torch.matmul, "matmul", operator.matmul, torch.bmm),
}
BY_OPERATION = {name: translation for translation, names in _TRANSLATIONS.items() for name in names}


def translation_of(graph: OnnxGraph, node: fx.Node) -> Translation:
    """Return what translates a node.

    Raises:
        UnsupportedOperation: nothing does; the message says where in the network the node stands.
    """
    module = graph.module(node)
    if isinstance(module, QuantizedLayer):
        return quantized_layer
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear):
        return float_layer
    if module is not None and is_batch_norm(module):
        return batch_norm
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
    return graph.constant(str(node.target), value)
