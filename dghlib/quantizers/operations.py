"""The kinds of operations in a traced graph, for quantization.

`kind_of` assigns every node to one of a few kinds, whether it was written as a module, a function or a method:

* LAYER: has a weight and a bias, and sums products: convolutions and linear layers;
* BATCH_NORM: a batch norm that could not be folded: an affine map per channel;
* ACTIVATION: element by element, with a single tensor as input; hardware computes it on the wide sum;
* ARITHMETIC: 2 tensors (or a tensor and a number), element by element;
* MOVEMENT: moves values or selects some, and makes no new values: its output lies on its input's grid;
* OTHER: any other computation (average pooling, softmax, concatenation of different grids, ...);
* IMAGE: the network's input;  NOTHING: the result is not a tensor (sizes, outputs), or is a constant.
"""

import operator
from collections.abc import Iterator
from enum import Enum, auto

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.modules.instancenorm._InstanceNorm)
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear


class Kind(Enum):
    """The kind of a node; see the module's docstring."""

    IMAGE = auto()
    LAYER = auto()
    BATCH_NORM = auto()
    ACTIVATION = auto()
    ARITHMETIC = auto()
    MOVEMENT = auto()
    OTHER = auto()
    NOTHING = auto()


# Each operation with all of its names: module classes, functions, methods of Tensor (as strings).
RELU = {nn.ReLU, F.relu, torch.relu, "relu"}
RELU6 = {nn.ReLU6, F.relu6, nn.Hardtanh, F.hardtanh}
NEGATIVE_TAIL = {
    nn.PReLU,
    F.prelu,
    nn.ELU,
    F.elu,
    nn.Hardswish,
    F.hardswish,
    nn.SiLU,
    F.silu,
    nn.GELU,
    F.gelu,
}
SHORT_TAIL = {nn.GELU, F.gelu, nn.SiLU, F.silu, nn.Hardswish, F.hardswish, nn.Mish, F.mish}  # a minimum below 0
ACTIVATIONS = {
    *RELU,
    *RELU6,
    *NEGATIVE_TAIL,
    *{nn.LeakyReLU, F.leaky_relu, nn.Mish, F.mish, nn.SELU, F.selu, nn.CELU, F.celu, nn.Softplus, F.softplus},
    *{nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid", nn.Hardsigmoid, F.hardsigmoid},
    *{nn.Tanh, F.tanh, torch.tanh, "tanh"},
}
CURVED = ACTIVATIONS - RELU - RELU6  # all that do more than clip
SILU = {nn.SiLU, F.silu}
TRANSCENDENTAL = {  # whose last bits differ between libraries
    *{*SILU, nn.GELU, F.gelu, nn.Mish, F.mish, nn.Softplus, F.softplus, nn.Tanh, F.tanh, torch.tanh, "tanh"},
    *{nn.ELU, F.elu, nn.SELU, F.selu, nn.CELU, F.celu, nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"},
}
ADDITIONS = {operator.add, torch.add, "add"}
DIVISIONS = {operator.truediv, torch.div, "div"}
ARITHMETIC = {
    *ADDITIONS,
    *DIVISIONS,
    *{operator.sub, torch.sub, "sub", operator.mul, torch.mul, "mul"},
}
JOINS = {torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack}
AVERAGE_POOLING = {nn.AvgPool2d, F.avg_pool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d}
AVERAGES = {*AVERAGE_POOLING, torch.mean, "mean"}
RESHAPES = {
    *{nn.Flatten, torch.flatten, "flatten", torch.reshape, "reshape", "view", nn.Unflatten, "unflatten"},
    *{torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze", "contiguous", "clone", "detach"},
    *{"reshape_as", "view_as"},
}
MAX_POOLING = {nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d, nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d}
PRODUCTS = {torch.matmul, "matmul", operator.matmul, torch.bmm, "bmm"}  # of 2 tensors
SOFTMAXES = {nn.Softmax, F.softmax, torch.softmax, "softmax"}
SPLITS = {torch.chunk, "chunk", torch.split, "split", torch.unbind, "unbind"}  # with several tensors as result
MOVEMENTS = {
    *RESHAPES,
    *MAX_POOLING,
    *{torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.swapdims, "swapdims"},
    *{torch.permute, "permute", "t", "expand", "repeat", torch.flip, "flip"},
    *{torch.roll, "roll"},
    *SPLITS,
    *{operator.getitem, "select", "narrow", "unfold", torch.index_select, "index_select"},
    *{F.pad, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.UpsamplingNearest2d},
    *{nn.ChannelShuffle, F.channel_shuffle, nn.PixelShuffle, F.pixel_shuffle, nn.PixelUnshuffle},
}


class ChannelAffine(nn.Module):
    """A batch norm that no layer took in, in the form of hardware: a product and a sum for each channel (C,).

    Both are rounded to float32, so that another runtime gets the same values bit for bit.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


def is_matrix(value: object) -> bool:
    """Say whether a value is a parameter along 2 or more axes; a scale of channels, (C, 1, 1), is none."""
    return isinstance(value, nn.Parameter) and sum(size > 1 for size in value.shape) > 1


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm: with torch's own forward, torchvision's frozen one, or ours."""
    forwards = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)  # 1d and 3d share the first
    return type(module) in (FrozenBatchNorm2d, ChannelAffine) or type(module).forward in forwards


def called_module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, or None if it calls none."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def does(graph: fx.GraphModule, node: fx.Node, operations: set) -> bool:
    """Return whether a node performs one of the `operations`, in any notation."""
    module = called_module(graph, node)
    if module is not None:
        return type(module) in operations
    return node.op in ("call_function", "call_method") and node.target in operations


def kind_of(graph: fx.GraphModule, node: fx.Node) -> Kind:
    """Return the kind of a node. Needs the shapes that `graph.folded_graph` stores in `node.meta`."""
    if node.op == "placeholder":
        return Kind.IMAGE
    if node.op in ("output", "get_attr") or "shape" not in node.meta:
        # a tuple of tensors, as from `chunk`, is passed on to the `getitem` that selects one
        return Kind.MOVEMENT if does(graph, node, MOVEMENTS) and node.op != "output" else Kind.NOTHING
    module = called_module(graph, node)
    if isinstance(module, LAYERS):
        return Kind.LAYER
    if module is not None and is_batch_norm(module):
        return Kind.BATCH_NORM
    if node.target is operator.getitem and not _of_one_tensor(node) and not _moves(graph, node.all_input_nodes[0]):
        return Kind.OTHER  # one of several computed tensors
    named = {Kind.ACTIVATION: ACTIVATIONS, Kind.ARITHMETIC: ARITHMETIC, Kind.MOVEMENT: MOVEMENTS}
    return next((kind for kind, operations in named.items() if does(graph, node, operations)), Kind.OTHER)


def _of_one_tensor(node: fx.Node) -> bool:
    return "shape" in node.all_input_nodes[0].meta


def _moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    return does(graph, node, MOVEMENTS) and (
        node.target is not operator.getitem or _moves(graph, node.all_input_nodes[0])
    )


def layer_calls(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, Layer]]:
    """Yield every call of a convolution or linear layer, in the order of computation, with the layer."""
    for node in graph.graph.nodes:
        module = called_module(graph, node)
        if isinstance(module, LAYERS):
            yield node, module


def layer_at(graph: fx.GraphModule, path: str) -> Layer:
    """Return the convolution or linear layer at a module path, or raise TypeError if it is another module."""
    layer = graph.get_submodule(path)
    if not isinstance(layer, LAYERS):
        raise TypeError(f"{path!r} is a {type(layer).__name__}, not a convolution or linear layer")
    return layer


def source_of(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the node that computed the values of `node`: itself, or the node before all movements."""
    while kind_of(graph, node) is Kind.MOVEMENT:
        node = node.all_input_nodes[0]
    return node
