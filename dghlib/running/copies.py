"""Private copies of networks, and what is done to them first."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn


def private_copy(net: nn.Module) -> nn.Module:
    """Return a copy in eval mode, in float32 and without gradients; of a compiled network, of what was compiled.

    Raises:
        ValueError: the network cannot be copied, holds complex numbers, or torch holds its code in a form that shows no
            layers.
    """
    net = getattr(net, "_orig_mod", net)  # of torch.compile
    _refuse_compiled_code(net)
    if strange := [name for name, tensor in net.state_dict().items() if tensor.is_complex()]:
        raise ValueError(f"{strange[0]!r} of the network holds complex numbers; networks of real ones are understood")
    try:
        net = copy.deepcopy(net)
    except Exception as error:
        raise ValueError(
            f"the network cannot be copied ({error}). Pruning and weight norm in the old style leave tensors "
            "that torch cannot copy: make them permanent first (prune.remove, remove_weight_norm)"
        ) from error
    _as_written(net)
    return net.eval().float().requires_grad_(False)


def _refuse_compiled_code(net: nn.Module) -> None:
    for name, module in net.named_modules():
        kind = "scripted or traced by torch.jit" if isinstance(module, torch.jit.ScriptModule) else ""
        if isinstance(module, fx.GraphModule) and any(
            isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
        ):
            kind = "exported by torch.export"
        if kind:
            raise ValueError(
                f"{f'module {name!r} of the network' if name else 'the network'} was {kind}, which hides its layers: "
                "pass the Python module that it was made from"
            )


def _as_written(net: nn.Module) -> None:
    """Take compiled code, and wrappers that spread images over devices, out of the modules of a network."""
    for module in net.modules():
        module._compiled_call_impl = None  # of `module.compile()`
        if isinstance(module, nn.DataParallel):
            module.device_ids = []  # so that it does no more than call what it wraps
        for name, child in module.named_children():
            if hasattr(child, "_orig_mod"):
                setattr(module, name, child._orig_mod)


def to_channels_last(net: nn.Module) -> None:
    """Lay out the weights of convolutions of maps in channels_last; `Module.to` would refuse those of volumes."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def output_for(net: nn.Module, images: Tensor) -> Any:
    """Return what a network answers to the first images (N, C, H, W) that are shown to it.

    Raises:
        ValueError: it fails; most often because it cannot take images of this shape.
        torch.OutOfMemoryError, MemoryError: as they were raised.
    """
    try:
        return net(images)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # networks are anybody's code
        if "allocate memory" in str(error):  # of a processor: torch has no error of its own for that
            raise MemoryError(str(error)) from error
        said = str(error) if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{type(net).__name__} fails on images of the shape {tuple(images.shape[1:])}: {said}. If that is about "
            "sizes, is the model's image_shape that of the images it was trained with?"
        ) from error
