"""Changes to a network's graph that come before its quantizers, by name, and are made again where a file is read.

They depend on the float network and on settings alone, so a file of a quantized copy need not hold what they make: it
names them, with their settings.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from dghlib.models import FloatModel
from dghlib.quantizers.equalization import equalize
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.reparameterization import reparameterize

PREPARATIONS: Mapping[str, Callable[..., None]] = {"equalize": equalize, "reparameterize": reparameterize}


def prepared_graph(model: FloatModel, about: Mapping[str, Any]) -> fx.GraphModule:
    """Return the folded graph of a network, prepared as a quantized copy is of which `about` says the facts.

    Its entry "preparation" has settings by name of change, in order. Raises as `folded_graph`.
    """
    graph = folded_graph(model)
    prepare(graph, about)
    return graph


def prepare(graph: fx.GraphModule, about: Mapping[str, Any]) -> None:
    """Make in a folded graph the changes that `about` names; raises nearly anything if it was not written here."""
    for name, settings in about.get("preparation", {}).items():
        PREPARATIONS[name](graph, **settings)
