"""Changes to a network's graph before it gets its quantizers, by name; they are repeated when a file is read.

They depend only on the float network and on settings. So the file of a quantized copy need not hold their results: it
has their names and settings.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from dghlib.models import FloatModel
from dghlib.quantizers.equalization import equalize
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.reparameterization import reparameterize
from dghlib.quantizers.splitting import split

PREPARATIONS: Mapping[str, Callable[..., None]] = {
    "equalize": equalize,
    "reparameterize": reparameterize,
    "split": split,
}


def preparation_of(settings: Any, **others: Any) -> dict[str, Any]:
    """Return the entry "preparation" for the facts of a copy: the changes that its settings ask for.

    Empty if they ask for none. `others` are settings by name of change, in addition to `settings.equalize`.
    """
    changes = ({"equalize": {"absorb": getattr(settings, "absorb", True)}} if settings.equalize else {}) | others
    return {"preparation": changes} if changes else {}


def prepared_graph(model: FloatModel, about: Mapping[str, Any]) -> fx.GraphModule:
    """Return the folded graph of a network, prepared as the quantized copy that the facts `about` describe.

    The entry "preparation" has settings by name of change, in order. Raises as `folded_graph`.
    """
    graph = folded_graph(model)
    prepare(graph, about)
    return graph


def prepare(graph: fx.GraphModule, about: Mapping[str, Any]) -> None:
    """Make in a folded graph the changes that `about` names; raises nearly anything if it was not written here."""
    for name, settings in about.get("preparation", {}).items():
        PREPARATIONS[name](graph, **settings)
