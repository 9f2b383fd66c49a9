"""A normal form of each operation, so that later steps are independent of how a network was written.

* Operations in place become ordinary ones, and later readers of the overwritten tensor read the result.
* Views become reshapes, which take tensors of any memory format.
* Convolutions, linear layers, batch norms and layer norms that were called as functions become modules.
* Values that do not depend on the images are computed once, and kept; a layer's own weight with other readers is
copied. * Operations without effect in eval mode (dropout, identity, stochastic depth) are removed.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import stochastic_depth

from dghlib.quantizers.operations import LAYERS, called_module, is_matrix
from dghlib.quantizers.tracing import TRACED


def to_normal_form(graph: fx.GraphModule) -> None:
    """Rewrite a traced graph, in place, to the normal form that this module describes."""
    _make_out_of_place(graph)
    _make_views_reshapes(graph)
    _compute_constants(graph)
    _turn_functions_into_layers(graph)
    _drop_what_does_nothing(graph)
    graph.graph.eliminate_dead_code()
    _forget_unread_constants(graph)
    graph.graph.lint()
    graph.recompile()


def _bound(node: fx.Node) -> inspect.BoundArguments | None:
    """Return the arguments of a function's call by name; None for built-ins and other nodes."""
    if node.op != "call_function" or not callable(node.target):
        return None
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None


# Operations in place

_AUGMENTED: dict[Any, Callable] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def _make_out_of_place(graph: fx.GraphModule) -> None:
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in order:
        if not _was_in_place(graph, node):
            continue
        overwritten = node.all_input_nodes[0]
        for reader in list(overwritten.users):
            if order[reader] > order[node]:
                reader.replace_input_with(overwritten, node)
    for module in graph.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def _was_in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node works in place; replace a function or method by its ordinary version."""
    if (module := called_module(graph, node)) is not None:
        return bool(getattr(module, "inplace", False))
    if (bound := _bound(node)) and bound.arguments.get("inplace"):
        bound.arguments["inplace"] = False
        node.args, node.kwargs = bound.args, bound.kwargs
        return True
    if (twin := _ordinary_twin(node)) is not None:
        node.target = twin
        return True
    return False


def _ordinary_twin(node: fx.Node) -> Callable | str | None:
    """Return the ordinary version of an operation, `relu` for `relu_`; None if its name does not end in `_`."""
    if node.target in _AUGMENTED:
        return _AUGMENTED[node.target]
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    plain = name.removesuffix("_")
    if plain == name or name.endswith("__") or node.op not in ("call_method", "call_function"):
        return None
    if node.op == "call_method":
        return plain if hasattr(Tensor, plain) else None
    return getattr(F, plain, None) or getattr(torch, plain, None)


# Views


def _make_views_reshapes(graph: fx.GraphModule) -> None:
    """Make `view` a `reshape`, which takes tensors of any memory format."""
    for node in graph.graph.nodes:
        of_type = any(isinstance(argument, torch.dtype) for argument in node.args)
        if node.op == "call_method" and node.target == "view" and not of_type:
            node.target = "reshape"


# Constants

CONSTANT = "constant_"  # prefix of the buffers that hold values computed once


def _compute_constants(graph: fx.GraphModule) -> None:
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(graph)
        elif node.op.startswith("call_") and node.all_input_nodes and all(n in values for n in node.all_input_nodes):
            values[node] = _result(graph, node, values)
    for node, value in values.items():
        computed = node.op != "get_attr" or isinstance(_owner(graph, node), LAYERS)
        if computed and isinstance(value, Tensor) and any(reader not in values for reader in node.users):
            _keep(graph, node, value, _parameters_of(graph, node))


def _result(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))(*args, **kwargs)
    if isinstance(node.target, str):
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def _owner(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    return graph.get_submodule(str(node.target).rpartition(".")[0])


def _parameters_of(graph: fx.GraphModule, node: fx.Node) -> tuple[str, ...]:
    """Return the names of the parameter matrices from which a constant is computed."""
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(graph)
        return (str(node.target),) if is_matrix(value) else ()
    return tuple(dict.fromkeys(name for read in node.all_input_nodes for name in _parameters_of(graph, read)))


def _keep(graph: fx.GraphModule, node: fx.Node, value: Tensor, parameters: tuple[str, ...]) -> None:
    """Replace a node that has the same value for all images by a buffer."""
    name = f"{CONSTANT}{node.name}"
    while hasattr(graph, name):
        name += "_"
    graph.register_buffer(name, value.detach().clone())
    with graph.graph.inserting_before(node):
        read = graph.graph.get_attr(name)
    read.meta = {**node.meta, "parameters": parameters}
    node.replace_all_uses_with(read)


def _forget_unread_constants(graph: fx.GraphModule) -> None:
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in graph.named_buffers(recurse=False) if name not in read]:
        if name.startswith((CONSTANT, TRACED)):
            delattr(graph, name)


# Functions that are layers

_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.conv3d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.conv_transpose2d: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
_CONVOLUTIONS: dict[Any, Any] = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}
_UNKNOWN = object()  # a value that depends on the images


class _BatchNorm(nn.BatchNorm2d):
    """For vectors, sequences, maps and volumes alike, as the function."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _turn_functions_into_layers(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in _ARGUMENTS:
            continue
        arguments = {**dict(zip(_ARGUMENTS[node.target], node.args, strict=False)), **node.kwargs}
        source = arguments.pop("input")
        values = {name: _constant(graph, value) for name, value in arguments.items()}
        if values.get("training") or any(value is _UNKNOWN for value in values.values()):
            continue  # remains a function, in float
        name = f"{node.name}_layer"
        while hasattr(graph, name):
            name += "_"
        graph.add_submodule(name, _layer(node.target, values).requires_grad_(False).eval())
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(name, (source,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)


def _constant(graph: fx.GraphModule, value: Any) -> Any:
    """Return the value of an argument, or _UNKNOWN if it depends on the images."""
    if not isinstance(value, fx.Node):
        return value
    return operator.attrgetter(str(value.target))(graph) if value.op == "get_attr" else _UNKNOWN


def _layer(function: Callable, values: dict[str, Any]) -> nn.Module:
    """Return a module that computes `function` with these constant arguments."""
    weight, bias = values.pop("weight", None), values.pop("bias", None)
    module: nn.Module
    if function is F.batch_norm:
        mean, variance = values["running_mean"], values["running_var"]
        module = _BatchNorm(len(mean), eps=values.get("eps", 1e-5), affine=weight is not None)
        module.running_mean, module.running_var = mean.clone(), variance.clone()
    elif function is F.layer_norm:
        module = nn.LayerNorm(values["normalized_shape"], eps=values.get("eps", 1e-5), elementwise_affine=False)
    elif function is F.linear:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    elif function is F.conv_transpose2d:
        outputs = weight.shape[1] * values.get("groups", 1)
        module = nn.ConvTranspose2d(weight.shape[0], outputs, tuple(weight.shape[2:]), bias=bias is not None, **values)
    else:
        inputs = weight.shape[1] * values.get("groups", 1)
        kernel = tuple(weight.shape[2:])
        module = _CONVOLUTIONS[function](inputs, weight.shape[0], kernel, bias=bias is not None, **values)
    if weight is not None:
        module.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    return module


# What does nothing

_IDLE_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_IDLE_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, stochastic_depth)
_IDLE_METHODS = ("detach", "clone")  # without effect when nothing is done in place
_NEUTRAL: dict[Any, int] = {  # the neutral number of an operation, on the right; or on either side
    **dict.fromkeys((operator.add, torch.add, "add", operator.sub, torch.sub, "sub"), 0),
    **dict.fromkeys((operator.mul, torch.mul, "mul", operator.truediv, torch.div, "div"), 1),
}
_ONE_SIDED = (operator.sub, operator.truediv)


def _drop_what_does_nothing(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        bound = _bound(node) if node.target in _IDLE_FUNCTIONS else None
        idle_function = bound is not None and bound.arguments.get("training") is False
        idle_method = node.op == "call_method" and node.target in _IDLE_METHODS
        idle_module = type(called_module(graph, node)) in _IDLE_MODULES
        if idle_function or idle_method or idle_module or _is_neutral(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)


def _is_neutral(node: fx.Node) -> bool:
    """Return whether a node adds 0 to a tensor, as Python's `sum` does at first, or multiplies it by 1."""
    if node.op not in ("call_function", "call_method") or node.target not in _NEUTRAL or len(node.all_input_nodes) != 1:
        return False
    read = node.all_input_nodes[0]
    shape = read.meta.get("shape")
    if shape is None or shape != node.meta.get("shape") or len(node.args) != 2 or node.kwargs:
        return False
    others = node.args[1:] if node.target in _ONE_SIDED else [each for each in node.args if each is not read]
    return len(others) == 1 and isinstance(others[0], int | float) and float(others[0]) == _NEUTRAL[node.target]
