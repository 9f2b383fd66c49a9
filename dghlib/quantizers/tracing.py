"""Conversion of a network to a graph of its computation, by torch.fx.

The graph is that of a private copy in eval mode, in float32, without hooks, and computes the same values.
"""

import inspect
import linecache
import traceback
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from dghlib.quantizers.layers import frozen
from dghlib.quantizers.operations import LAYERS
from dghlib.quantizers.sizes import PathDependsOnNumber, free_number_of_images
from dghlib.quantizers.tracer import PREFIX, OneInput, Tracer

_NOT_THE_NETWORK = (str(Path(torch.__file__).parent), str(Path(__file__).parent))  # code of torch and dghlib

TRACED = "traced"  # prefix of the buffers that hold values computed by `forward` from constants


class UntraceableNetwork(ValueError):
    """torch.fx cannot turn a network into a graph, or not into one that computes the same."""


def trace(net: nn.Module, images: Tensor, known_sizes: bool = True) -> fx.GraphModule:
    """Return the graph of a network with a single input. Its modules are those of `net`, not copies.

    Nodes keep `nn_module_stack` (path -> (path, class)) in their `meta`, so that blocks can be found by path, and the
    `shape` that floating-point tensors have for `images`.

    Args:
        net: a private copy in eval mode, which may gain buffers.
        images: 2 or more (N, C, H, W) of the network's input size.
        known_sizes: whether the graph is only for images of this size, in any number; otherwise it reads sizes in every
            pass as the network does, and a path that depends on them cannot be followed.

    Raises:
        UntraceableNetwork: the message names the place in the network's code that cannot be followed.
    """
    wrapped, recorded = _recorded(net, images, known_sizes)
    if known_sizes:
        others, fewer = _recorded(net, images[:-1], known_sizes)
        try:
            free_number_of_images(recorded, fewer)
            _free_constants(recorded, wrapped, others)
        except PathDependsOnNumber as error:
            raise UntraceableNetwork(
                f"{error}. Something in it changes from call to call (random numbers, a counter), or a decision "
                "depends on the number of images, which may be any number for a quantized network"
            ) from error
    for node in recorded.nodes:
        if node.op == "get_attr":
            node.target = _kept_by(net, wrapped, str(node.target))
        stack = node.meta.get("nn_module_stack", {})
        node.meta["nn_module_stack"] = {key: value for key, value in stack.items() if key}
        if hasattr(nn.ModuleDict, node.name):  # which keeps quantizers by these names
            node._rename(f"{node.name}_of")
    return fx.GraphModule(net, recorded, class_name=type(net).__name__)


def _recorded(net: nn.Module, images: Tensor, known_sizes: bool) -> tuple[nn.Module, fx.Graph]:
    """Return the graph of a wrapped network, and the wrapper that keeps its constants."""
    wrapped = OneInput(net)
    try:
        return wrapped, Tracer(images.clone(), known_sizes).trace(wrapped)
    except Exception as error:
        raise UntraceableNetwork(_explanation(error, net)) from error


def _free_constants(recorded: fx.Graph, wrapped: nn.Module, others: nn.Module) -> None:
    """Keep a tensor that `forward` made equal for all images once, and repeat it for the images of a pass.

    Raises:
        PathDependsOnNumber: a constant depends on the number of images.
    """
    images = next(iter(recorded.nodes))
    for node in [node for node in recorded.nodes if node.op == "get_attr"]:
        value, other = (attrgetter(str(node.target))(net) for net in (wrapped, others))
        if not isinstance(value, Tensor) or value is other or torch.equal(value, other):
            continue
        if value.shape[1:] != other.shape[1:] or not (value == value[:1]).all() or not (other == value[:1]).all():
            raise PathDependsOnNumber(f"{node.target} is a tensor that forward makes anew in each pass")
        setattr(wrapped, str(node.target), value[:1])
        with recorded.inserting_after(node):
            count = recorded.call_method("size", (images, 0))
        with recorded.inserting_after(count):
            rows = recorded.call_method("expand", (node, count, *value.shape[1:]))
        rows.meta = {**node.meta, "shape": tuple(value.shape), "batch_axis": 0}
        node.replace_all_uses_with(rows, delete_user_cb=lambda user, kept=rows: user is not kept)


def _kept_by(net: nn.Module, wrapped: nn.Module, name: str) -> str:
    """Return the path in `net` of a tensor that the tracer found in the wrapped network.

    If `forward` computed it from constants (a view of a buffer, `torch.tensor(...)`), the tracer keeps it on the
    wrapper; it becomes a buffer of the network.
    """
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    path = f"{TRACED}{name}"
    while hasattr(net, path):
        path += "_"
    net.register_buffer(path, getattr(wrapped, name))
    return path


def make_weights_plain(net: nn.Module) -> None:
    """Replace weights that are computed in each pass by parameters with their current values; remove all hooks.

    A hook that computes a weight, as in spectral norm in the old style, must have run.
    """
    for module in list(net.modules()):
        if parametrize.is_parametrized(module):
            _make_parametrized_permanent(module)
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
        if isinstance(module, LAYERS) and isinstance(weight := vars(module).get("weight"), Tensor):
            module.weight = frozen(weight)


def _make_parametrized_permanent(module: Any) -> None:
    """Do the same as torch's `remove_parametrizations`, without removing the class that the original shares."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    del module.parametrizations
    module.__class__ = parametrize.type_before_parametrizations(module)
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def check_one_input(net: nn.Module) -> None:
    """Raise ValueError if a network needs more inputs than images."""
    parameters = inspect.signature(net.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.kind in named and p.default is p.empty]
    if len(required) > 1:
        raise ValueError(
            f"{type(net).__name__}.forward takes {len(required)} inputs ({', '.join(required)}), but only "
            "networks of one input, the images, can be quantized: wrap the network in a module that fixes the "
            "others, or quantize the part of it that takes images alone"
        )


def _explanation(error: Exception, net: nn.Module) -> str:
    """Return the place in the network's own code where tracing failed, and the remedy."""
    names = {id(module): name for name, module in net.named_modules()}
    place, module = "its forward", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        first_argument = next(iter(frame.f_locals.values()), None)
        module = names.get(id(first_argument), module)
        if not file.startswith(_NOT_THE_NETWORK):
            place = f"{file}, line {line}: `{linecache.getline(file, line).strip()}`"
    kind = type(net.get_submodule(module)).__name__
    return (
        f"torch.fx cannot follow {f'module {module!r}' if module else 'the network'} ({kind}) at {place}: {error}. "
        "A network can be quantized if its path does not depend on its input: take such decisions in __init__, "
        "or from plain numbers; or quantize the part that can be traced, e.g. FloatModel(net=net.backbone, ...)"
    )
