"""A tracer that runs the network on example images while it records the computation.

torch.fx passes a network proxies for its tensors. The proxies of torch have no values, so a branch on the size of a
map, which is constant for a network, cannot be followed. Our proxies hold the value of each tensor for the example
images. Properties other than values (shape, type, device) are answered from it, and are constants of the trace; the
values themselves cannot be read.

The number of images is a constant of the trace as well: see `sizes`, which finds it again.
"""

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.utils._pytree import tree_leaves

from dghlib.quantizers.attention import WRITTEN_OUT
from dghlib.quantizers.operations import is_batch_norm

PREFIX = "net."  # of all names inside OneInput
_SIZES = {"shape", "size", "numel", "nelement", "stride", "is_same_size", "is_contiguous", "storage_offset"}
_FACTS = {
    *{"dim", "ndimension", "type", "element_size", "get_device", "is_signed", "result_type", "can_cast"},
    *{"is_floating_point", "is_complex", "is_conj", "is_neg", "is_inference", "is_shared", "is_pinned"},
}
# Make a tensor of which the first argument gives the shape, the type or the device alone.
_LIKE = {
    *{"new_full", "new_zeros", "new_ones", "new_empty", "new_tensor"},
    *{"full_like", "zeros_like", "ones_like", "empty_like"},
}
_CASTS = {"to", "type", "type_as", "float", "contiguous", "cpu", "cuda", "expand_as", "requires_grad_"}


def _writes(method: str) -> bool:
    """Return whether a method of tensors changes its tensor in place."""
    return method == "__setitem__" or (method.endswith("_") and not method.endswith("__"))


class OneInput(nn.Module):
    """Hides optional arguments of a network's `forward`, so that their defaults are constants of the trace."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        return self.net(images)


class Known(fx.Proxy):
    """A proxy for a tensor, or several, of the traced network, which answers all questions of the network's code."""

    tracer: "Tracer"

    def __init__(self, node: fx.Node, tracer: "Tracer", value: Any):
        fx.Proxy.__init__(self, node, tracer)
        self.value = value

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.value)

    def __getattr__(self, k: str) -> Any:
        value = self.__dict__["value"]
        if k == "data":
            return self
        found = getattr(value, k)
        if isinstance(value, tuple):  # one of several tensors, as in torch.max(...).values
            places = [place for place, part in enumerate(value) if part is found]
            return self[places[0]] if places else found  # type: ignore[index]
        if isinstance(found, Tensor) or (k in _SIZES and not callable(found) and not self.tracer.known_sizes):
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return Attribute(self, k) if callable(found) else found

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self.value)))  # type: ignore[index]

    def __len__(self) -> int:
        if isinstance(self.value, Tensor) and not self.tracer.known_sizes:
            return fx.Proxy.__len__(self)
        return len(self.value)


class Tracer(fx.Tracer):
    """Names modules as the network does, and does not enter modules of torch's own code without submodules.

    Args:
        images: (N, C, H, W), the example images.
        known_sizes: whether sizes are constants of the trace; otherwise they are computed from the images, as networks
            need that take images of many sizes.
    """

    def __init__(self, images: Tensor, known_sizes: bool):
        super().__init__()
        self.images, self.known_sizes = images, known_sizes
        self.computing = False  # True while values are computed, rather than traced

    def path_of_module(self, mod: nn.Module) -> str:
        path = super().path_of_module(mod)
        return path.removeprefix(PREFIX) if path != "net" else ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        home = getattr(m.forward, "__module__", None) or ""
        alone = home.startswith("torch.nn.") and not isinstance(m, nn.Sequential) and not list(m.children())
        return module_qualified_name != "" and (alone or is_batch_norm(m))

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:
        """Compute a value; return it if it is a property of a tensor, and otherwise its proxy."""
        if not self.computing and kind == "call_function" and target in WRITTEN_OUT:
            return WRITTEN_OUT[target](*args, **kwargs)
        if kind == "call_method" and _writes(target) and not isinstance(args[0], fx.Proxy):
            raise TypeError("values are written into a tensor of constants; use torch.cat or torch.where instead")
        value = self._value(kind, target, args, kwargs)
        operation = target if isinstance(target, str) else getattr(target, "__name__", "")
        if kind in ("call_method", "call_function") and not isinstance(value, Tensor) and self._is_fact(operation):
            return value
        if self._is_made_of_constants(operation, args, kwargs):
            return value
        if operation in _CASTS and args and getattr(args[0], "value", None) is value:
            return args[0]
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, lambda node: Known(node, self, value))
        if isinstance(value, Tensor):
            proxy.node.meta["traced_shape"] = tuple(value.shape)
            if value.is_floating_point():
                proxy.node.meta["shape"] = tuple(value.shape)
        return proxy

    def _is_fact(self, operation: str) -> bool:
        return operation in _FACTS or (self.known_sizes and operation in _SIZES)

    def _is_made_of_constants(self, operation: str, args: Any, kwargs: Any) -> bool:
        """Return whether no value of a traced tensor is in the result, such as in `grid.type_as(x)`."""
        if operation == "type_as":
            return not isinstance(args[0], fx.Proxy)
        leaves = tree_leaves((args[1:], kwargs))
        return self.known_sizes and operation in _LIKE and not any(isinstance(leaf, fx.Proxy) for leaf in leaves)

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: a.value if isinstance(a, Known) else a)
        self.computing = True
        try:
            if kind == "placeholder":
                return self.images
            if kind == "get_attr":
                return operator.attrgetter(target)(self.root)
            if kind == "call_module":
                return self.root.get_submodule(PREFIX + target).forward(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)
        finally:
            self.computing = False
