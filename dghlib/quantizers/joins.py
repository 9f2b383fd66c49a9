"""Concatenated tensors, and the grid that they share from there on.

Hardware has a single grid for a concatenation, as layers that read it need. A detector that returns boxes of 640 pixels
beside scores from 0 to 1 would round every score to 0. So the parts of a concatenation keep grids of their own,

* at an output of the network, if one part has a range so much larger than another that half of the other's bits are
lost; * elsewhere, if no value of a part would survive. The layers that read such a concatenation compute in float.

Both cases are logged.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import fx
from torch.utils._pytree import tree_leaves

from dghlib.quantizers.calibration import Histogram
from dghlib.quantizers.operations import JOINS, Kind, does, kind_of, source_of
from dghlib.quantizers.placement import Bits, output_sites
from dghlib.quantizers.sites import site_of

log = logging.getLogger(__name__)


def parts_of(graph: fx.GraphModule, tensors: Collection[str]) -> dict[str, list[str]]:
    """Return, for those of `tensors` that are concatenations, the sites of the concatenated tensors."""
    joins = [node for node in graph.graph.nodes if node.name in tensors and does(graph, node, JOINS)]
    return {join.name: list(dict.fromkeys(_parts(graph, join))) for join in joins}


def _parts(graph: fx.GraphModule, join: fx.Node) -> Iterable[str]:
    for part in tree_leaves((join.args, join.kwargs)):
        if isinstance(part, fx.Node) and kind_of(graph, source := source_of(graph, part)) is not Kind.NOTHING:
            yield site_of(source)


def with_parts(graph: fx.GraphModule, tensors: Collection[str]) -> list[str]:
    """Return tensors, and the parts of the concatenations among them."""
    return list(dict.fromkeys([*tensors, *(part for parts in parts_of(graph, tensors).values() for part in parts)]))


def apart(graph: fx.GraphModule, bits: Bits, histograms: Mapping[str, Histogram]) -> Bits:
    """Return bits without the concatenations whose parts differ too much; the parts get the bits of the concatenation.

    Args:
        graph: of the network.
        bits: of its tensors.
        histograms: of these, and of the parts.
    """
    returned, activations = output_sites(graph), dict(bits.activations)
    for join, parts in parts_of(graph, bits.activations).items():
        reaches = sorted(filter(None, (max(-histograms[part].minimum, histograms[part].maximum) for part in parts)))
        width = activations[join]
        lost = width / 2 if join in returned else width
        if reaches and reaches[-1] > reaches[0] * 2**lost:
            log.warning(
                "%s concatenates tensors with ranges from %.3g to %.3g: each keeps its own grid, the whole has none",
                *(join, reaches[0], reaches[-1]),
            )
            del activations[join]
            activations = {part: activations.get(part, width) for part in parts} | activations
    in_order = [node.name for node in graph.graph.nodes if node.name in activations]
    return replace(bits, activations={name: activations[name] for name in in_order})
