"""The choice of the tensors that get a quantizer, and of their bits.

A *placement* is a function from a graph to the names of the nodes whose output is quantized, in order of computation.
All readers of a tensor read the same quantized tensor. Tensors at a common site, such as those of all levels in a
shared head, are named once (see `sites`).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import fx
from torch.utils._pytree import tree_leaves

from dghlib.quantizers.grid import FLOAT_BITS
from dghlib.quantizers.operations import (
    AVERAGES,
    DIVISIONS,
    PRODUCTS,
    RELU,
    RELU6,
    Kind,
    does,
    kind_of,
    layer_calls,
    source_of,
)
from dghlib.quantizers.sites import site_of

BIT_POLICIES = ("full", "academic")
_SPARED_BITS = 8  # of the tensors that the academic policy spares

_COMPUTING = (Kind.IMAGE, Kind.LAYER, Kind.BATCH_NORM, Kind.ACTIVATION, Kind.ARITHMETIC, Kind.OTHER)


def every_tensor(graph: fx.GraphModule) -> list[str]:
    """Return every tensor that hardware would write to memory, as HPTQ and its authors' toolkit do.

    The image, sums before they are added to a shortcut, averages and logits are included. An activation function shares
    a grid with the layer before it, and a ReLU or ReLU6 with the addition before it: only the result is written.
    Movements of values (max pooling, reshapes, parts of concatenations, padding) keep their grid. Divisors
    stay in float: rounded to 0, they would make the quotients infinite.
    """
    names = []
    for node in graph.graph.nodes:
        kind = kind_of(graph, node)
        if kind in _COMPUTING and not _fused_with_reader(graph, node, kind) and not _divides(graph, node):
            names.append(node.name)
    return _one_of_each_site(graph, names)


def layer_and_block_outputs(graph: fx.GraphModule) -> list[str]:
    """Return the tensors of BRECQ and QDrop: the outputs of layers, activation functions and shortcuts' additions.

    Unlike in `every_tensor`, the image, averages, and sums before they are added to a shortcut stay in float. Logits
    are included, because `assign_bits` leaves them out where the papers do.
    """
    names = []
    for name in every_tensor(graph):
        node = _named(graph, name)
        added = kind_of(graph, node) in (Kind.LAYER, Kind.BATCH_NORM) and _only_reader_adds(graph, node)
        if kind_of(graph, node) not in (Kind.IMAGE, Kind.OTHER) and not added:
            names.append(name)
    return names


def layer_inputs(graph: fx.GraphModule) -> list[str]:
    """Return the tensors of GENIE-M: the inputs of layers, except the image; and the logits."""
    read = {source_of(graph, call.all_input_nodes[0]).name for call, _ in layer_calls(graph)}
    read |= {source_of(graph, output).name for output in _outputs(graph)}
    names = [node.name for node in graph.graph.nodes if node.name in read and kind_of(graph, node) is not Kind.IMAGE]
    return _one_of_each_site(graph, names)


def factors(graph: fx.GraphModule) -> list[str]:
    """Return the tensors of quantizers for transformers: the inputs of layers, and both factors of tensor products.

    The image is included; logits, sums beside shortcuts, scores before a softmax, and the inputs of layer norms and
    activation functions are not. The parts of a layer's output, such as queries, keys and values, have grids of
    their own.
    """
    read = {source_of(graph, call.all_input_nodes[0]).name for call, _ in layer_calls(graph)}
    for node in graph.graph.nodes:
        if does(graph, node, PRODUCTS):
            read |= {factor.name for factor in node.all_input_nodes if "shape" in factor.meta}
    return _one_of_each_site(graph, [node.name for node in graph.graph.nodes if node.name in read])


def rectified(graph: fx.GraphModule) -> list[str]:
    """Return the tensors of the family of GDFQ: only the outputs of ReLU and ReLU6."""
    names = [node.name for node in graph.graph.nodes if does(graph, node, RELU | RELU6)]
    return _one_of_each_site(graph, names)


PLACEMENTS: Mapping[str, Callable[[fx.GraphModule], list[str]]] = {
    "every_tensor": every_tensor,
    "brecq": layer_and_block_outputs,
    "genie": layer_inputs,
    "relu_only": rectified,
    "factors": factors,
}


def _one_of_each_site(graph: fx.GraphModule, names: list[str]) -> list[str]:
    return list(dict.fromkeys(site_of(_named(graph, name)) for name in names))


def _named(graph: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in graph.graph.nodes if node.name == name)


def _only_reader_adds(graph: fx.GraphModule, node: fx.Node) -> bool:
    return len(node.users) == 1 and kind_of(graph, next(iter(node.users))) is Kind.ARITHMETIC


def _fused_with_reader(graph: fx.GraphModule, node: fx.Node, kind: Kind) -> bool:
    if len(node.users) != 1:
        return False
    reader = next(iter(node.users))
    if kind in (Kind.LAYER, Kind.BATCH_NORM):
        return kind_of(graph, reader) is Kind.ACTIVATION
    return kind is Kind.ARITHMETIC and does(graph, reader, RELU | RELU6)


def _divides(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node's tensor is the divisor of another tensor."""
    return any(does(graph, reader, DIVISIONS) and node in reader.args[1:] for reader in node.users)


@dataclass(frozen=True)
class Bits:
    """Bits per quantizer; weights and tensors in float are left out.

    Attributes:
        weights: by module path.
        activations: by node name.
    """

    weights: Mapping[str, int]
    activations: Mapping[str, int]


def assign_bits(graph: fx.GraphModule, tensors: list[str], weight_bits: int, activation_bits: int, policy: str) -> Bits:
    """Return the bits of every layer's weight and of every one of `tensors`.

    "full" gives all of them the same bits. "academic" spares the ends as the reconstruction papers do: weights of the
    first and the last layer and the inputs, among `tensors`, of the first, second and last layer keep at least 8 bits,
    and the network's outputs stay in float.
    """
    calls = [node for node, _ in layer_calls(graph)]
    weights = {str(call.target): weight_bits for call in calls}
    activations = dict.fromkeys(tensors, activation_bits)
    if policy == "academic":
        for call in calls[:1] + calls[-1:]:
            weights[str(call.target)] = max(weight_bits, _SPARED_BITS)
        for call in calls[:2] + calls[-1:]:
            source = _quantized_source(graph, call.all_input_nodes[0], activations)
            if source in activations:
                activations[source] = max(activation_bits, _SPARED_BITS)
        for output in output_sites(graph):
            activations.pop(output, None)
    return Bits(_quantized(weights), _quantized(activations))


def output_sites(graph: fx.GraphModule) -> list[str]:
    """Return the sites of the tensors that a network returns, those of the last operations that compute values."""
    return [site_of(source_of(graph, output)) for output in _outputs(graph)]


def _quantized_source(graph: fx.GraphModule, node: fx.Node, tensors: Collection[str]) -> str:
    """Return the tensor whose grid `node` uses; for an average in float, the tensor that is averaged."""
    node = source_of(graph, node)
    while node.name not in tensors and does(graph, node, AVERAGES):
        node = source_of(graph, node.all_input_nodes[0])
    return node.name


def _outputs(graph: fx.GraphModule) -> list[fx.Node]:
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    return [leaf for leaf in tree_leaves(end.args) if isinstance(leaf, fx.Node)]


def _quantized(bits: dict[str, int]) -> dict[str, int]:
    return {name: width for name, width in bits.items() if width != FLOAT_BITS}
