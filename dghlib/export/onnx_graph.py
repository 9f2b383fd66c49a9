"""An ONNX graph under construction: nodes, constants, and the ONNX value of each tensor of a traced network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

OPSET = 21  # the first with 4-bit integers
_IR_VERSION = 10


class UnsupportedOperation(ValueError):
    """An operation of the network that has no translation to ONNX here; the message names its place."""


class OnnxGraph:
    """Collects the parts of an ONNX model while a traced graph is processed.

    Args:
        traced: from `folded_graph`, or that of a quantized model.
        signed_weights: whether weights of up to 8 bits are signed integers (see `export_onnx`).

    Attributes:
        values: the name of the ONNX value for each node; for a node with several tensors, a list of names.
        grids: the name of the grid for each node whose values lie on one (see `integers`).
    """

    def __init__(self, traced: fx.GraphModule, *, signed_weights: bool = True):
        self.traced, self.signed_weights = traced, signed_weights
        self.values: dict[fx.Node, str | list[str]] = {}
        self.grids: dict[fx.Node, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with an output of that name; return the name."""
        self.nodes.append(helper.make_node(operation, list(inputs), [output], name=output, **attributes))
        return output

    def add_several(
        self, operation: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> None:
        """Append a node with several outputs."""
        self.nodes.append(helper.make_node(operation, list(inputs), list(outputs), name=name, **attributes))

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Store a constant (numbers, an array or a tensor); return its name."""
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else value
        self.constants[name] = numpy_helper.from_array(np.asarray(array, dtype=dtype), name)
        return name

    def number(self, name: str) -> float:
        """Return the number in a constant."""
        return numpy_helper.to_array(self.constants[name]).item()

    def value(self, argument: Any, name: str) -> str:
        """Return the ONNX value of an argument: of a node, or of a number, which is stored under `name`."""
        if not isinstance(argument, fx.Node):
            return self.constant(name, argument)
        found = self.values[argument]
        if not isinstance(found, str):
            raise UnsupportedOperation(f"{argument.name} holds several tensors, and is read as if it were one")
        return found

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, or None."""
        return self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def settings(self, node: fx.Node, *names: str) -> dict[str, Any]:
        """Return the settings of an operation by name, for a module or a call with arguments after the tensor.

        Raises:
            UnsupportedOperation: the call has settings other than `names`.
        """
        if (module := self.module(node)) is not None:
            return {name: getattr(module, name) for name in names if hasattr(module, name)}
        given = {_ALIASES.get(name, name): value for name, value in node.kwargs.items() if name not in _NO_SETTINGS}
        if strange := {
            name: value for name, value in given.items() if name not in names and value not in (None, False)
        }:
            raise UnsupportedOperation(f"{node.name} has settings that its translation does not support: {strange}")
        return dict(zip(names, node.args[1:], strict=False)) | given

    def model(self, inputs: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]) -> onnx.ModelProto:
        """Return the finished model; shapes of inputs and outputs may contain names."""
        starts, ends = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in side.items()]
            for side in (inputs, outputs)
        )
        nodes, read = self._read_nodes(outputs)
        constants = [constant for name, constant in self.constants.items() if name in read]
        graph = helper.make_graph(nodes, "dghlib", starts, ends, initializer=constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION, producer_name="dghlib")

    def _read_nodes(self, outputs: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
        """Return the nodes with outputs, and all values that are read."""
        nodes, read = [], set(outputs)
        for node in reversed(self.nodes):
            if read.intersection(node.output):
                nodes.append(node)
                read.update(node.input)
        return nodes[::-1], read


# Operations with several names, and arguments that are not settings.
_ALIASES = {
    "axis": "dim",
    "keepdims": "keepdim",
    **dict.fromkeys(("chunks", "split_size", "split_size_or_sections"), "size"),
}
_NO_SETTINGS = ("input", "tensors", "inplace", "_stacklevel")


def sizes(value: Any, count: int) -> list[int]:
    """Return a size as torch has it, one number for all axes or one for each, as a list of `count` numbers."""
    given = [int(value)] if isinstance(value, int) else [int(part) for part in value]
    return given * (count // len(given))


def batched(node: fx.Node) -> list[int]:
    """Return the shape of a node's tensor, observed with some number of images, as a shape for any number."""
    shape = list(shape_of(node))
    axis = node.meta.get("batch_axis", 0)
    return [*shape[:axis], -1, *shape[axis + 1 :]]


def reshaped(graph: "OnnxGraph", node: fx.Node, value: str, name: str) -> str:
    """Append a reshape of a value to the shape of a node's tensor; return the name of the result."""
    return graph.add("Reshape", [value, graph.constant(f"{name}.shape", batched(node), "int64")], name)


def source(graph: OnnxGraph, node: fx.Node) -> str:
    """Return the ONNX value of the first tensor that a node reads."""
    return graph.value(node.args[0] if node.args else node.kwargs["input"], f"{node.name}.input")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape, for some images, of the tensor that a node holds; for a quantizer, that of its input."""
    return node.meta["shape"] if "shape" in node.meta else shape_of(node.all_input_nodes[0])


# A translation appends the operations for a node, and returns the name of the resulting value, or of several.
Translation = Callable[[OnnxGraph, fx.Node], str | list[str]]
