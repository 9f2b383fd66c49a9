"""Watch tensors inside a running network, by the names of its modules.

A forward *pre*-hook sees what a module is given, whatever stands before it in the graph; so nothing here depends on
the order in which modules were registered, and a network need not be traceable.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def recorded_inputs(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the first input of the named modules while the context lasts.

    Yields a dict in the order of the modules' first calls; each value lists one tensor per call (a head shared by
    the levels of a pyramid is called several times). Tensors keep their graph. Modules never called are absent.
    Clear the dict to reuse the context for another forward. The hooks are gone afterwards, also after an error.
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
