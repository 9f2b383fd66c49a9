"""Private copies of networks, and the preparation of these copies."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn


def private_copy(net: nn.Module) -> nn.Module:
    """Return a copy in eval mode, in float32 and without gradients; for a compiled network, a copy of the original.

    Raises:
        ValueError: the network cannot be copied, holds complex numbers, or torch stores its code in a form that hides
            its layers.
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
    """Remove compiled code, and wrappers that distribute images over devices, from the modules of a network."""
    for module in net.modules():
        module._compiled_call_impl = None  # of `module.compile()`
        if isinstance(module, nn.DataParallel):
            module.device_ids = []  # so that it only calls the wrapped module
        for name, child in module.named_children():
            if hasattr(child, "_orig_mod"):
                setattr(module, name, child._orig_mod)


def to_channels_last(net: nn.Module) -> None:
    """Convert the weights of 2D convolutions to channels_last; `Module.to` would refuse those of 3D convolutions."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def output_for(net: nn.Module, images: Tensor) -> Any:
    """Return the output of a network for the first images (N, C, H, W) that it receives.

    Raises:
        ValueError: the network fails; most often because it cannot take images of this shape.
        torch.OutOfMemoryError, MemoryError: as raised by torch.
    """
    try:
        return net(images)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a network is the user's code, which can raise anything
        if "allocate memory" in str(error):  # on a CPU; torch has no error type for this case
            raise MemoryError(str(error)) from error
        said = str(error) if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{type(net).__name__} fails on images of the shape {tuple(images.shape[1:])}: {said}. If the error is "
            "about sizes, check that the model's image_shape is that of its training images"
        ) from error
