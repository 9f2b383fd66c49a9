"""Watch tensors inside a running network, by the names of its modules.

A forward *pre*-hook sees the input of a module, independent of the layers before it. So nothing here depends on the
order in which modules were registered, and a network need not be traceable.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def recorded_inputs(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the first input of the named modules while the context lasts.

    Yields a dict in the order of the modules' first calls. Each value lists a tensor per call (a head that the levels
    of a pyramid share is called several times). Tensors keep their graph. Modules that are never called are absent.
    Clear the dict to use the context for another forward pass. The hooks are removed afterwards, also after an error.
    """
    inputs: dict[str, list[Tensor]] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _, args: inputs.setdefault(name, []).append(args[0]))

    modules = dict(net.named_modules())
    handles = [watch(name, modules[name]) for name in names]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
