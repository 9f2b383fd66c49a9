"""A network with quantizers, and its file."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from dghlib.models import FloatModel
from dghlib.quantizers.graph import device_of, folded_graph
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import QuantizedLayer, channel_axis, frozen
from dghlib.quantizers.operations import Layer, layer_at
from dghlib.quantizers.preparation import prepare
from dghlib.quantizers.sites import site_of
from dghlib.quantizers.uneven import KINDS, Quantizer, kind_of_grid, unset
from dghlib.storage.reading import reading
from dghlib.storage.records import write_atomically

_FORMAT = 1
_ACTIVATIONS = "activation_quantizers"


class QuantizedModel(nn.Module):
    """A network in simulated quantization: normalised images (N, C, H, W) in, logits out, in float on grids.

    Args:
        graph: from `folded_graph`; it is changed and becomes part of this model.
        weights: quantizers of weights, by the path of the layer's module.
        activations: quantizers of tensors, by the name of the node that computes them; tensors at a common site share
            a quantizer (see `sites`).
        about: plain facts for the file: the float model's name, the method, its settings, the preparation of the graph.

    Layers and tensors that are not named stay in float.

    Raises:
        ValueError: the graph does not have the weight or tensor of a quantizer.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        weights: Mapping[str, UniformQuantizer],
        activations: Mapping[str, Quantizer],
        about: Mapping[str, Any],
    ):
        super().__init__()
        if absent := activations.keys() - {node.name for node in graph.graph.nodes}:
            raise ValueError(f"the graph has no tensors {', '.join(sorted(absent))}")
        self.about = dict(about)
        self.graph = graph
        for path, quantizer in weights.items():
            graph.set_submodule(path, QuantizedLayer(layer_at(graph, path), quantizer))
        graph.add_submodule(_ACTIVATIONS, nn.ModuleDict(activations))
        for node in list(graph.graph.nodes):
            if site_of(node) in activations:
                _insert_after(graph.graph, node)
        graph.graph.lint()
        graph.recompile()
        self.to(device_of(graph)).eval()

    def forward(self, images: Tensor) -> Any:
        return self.graph(images)

    def weight_quantizers(self) -> dict[str, UniformQuantizer]:
        """Return the quantizer of every quantized weight, by the path of its layer."""
        layers = {p: module for p, module in self.graph.named_modules() if isinstance(module, QuantizedLayer)}
        quantizers = {path: layer.weight_quantizer for path, layer in layers.items()}
        return {path: grid for path, grid in quantizers.items() if isinstance(grid, UniformQuantizer)}

    def activation_quantizers(self) -> dict[str, Any]:
        """Return the quantizer of every quantized tensor, by its name, in the order of computation.

        Most methods make only quantizers of the class `UniformQuantizer`; `uneven.Quantizer` lists all classes.
        """
        return dict(self.graph.get_submodule(_ACTIVATIONS).items())  # type: ignore[operator]

    def set_activation_quantizers(self, quantizers: Mapping[str, nn.Module]) -> None:
        """Replace the quantizers of some tensors by other modules, by name of tensor."""
        for name, quantizer in quantizers.items():
            self.graph.set_submodule(quantizer_path(name), quantizer.to(device_of(self.graph)), strict=True)

    def without_activation_quantizers(self) -> fx.GraphModule:
        """Return the graph with tensors in float; its layers are those of this model, not copies."""
        graph = copy.deepcopy(self.graph.graph)
        for node in list(graph.nodes):
            if str(node.target).startswith(f"{_ACTIVATIONS}."):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)
        return fx.GraphModule(self.graph, graph)

    def save(self, path: Path | str) -> None:
        """Write tensors and grids to a safetensors file.

        The file does not contain the architecture: `load` takes it from the float model.

        Raises:
            OSError: the file cannot be written; no partial file remains.
        """
        header = {
            "format": _FORMAT,
            "about": self.about,
            "weights": {name: [q.bits, q.signed] for name, q in self.weight_quantizers().items()},
            "activations": {name: _facts(q) for name, q in self.activation_quantizers().items()},
        }
        tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        metadata = {"dghlib": json.dumps(header)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: Path | str, model: FloatModel) -> "QuantizedModel":
        """Return the quantized model that `save` wrote; `model` is the float model from which it was made.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, was not written by `save`, or belongs to another network.
        """
        header, tensors = _read(path)
        graph = folded_graph(model)
        again = "quantize that network again, or name the network that the file is of"
        with reading(path, f"{model.name!r} quantized, it holds {header['about'].get('model')!r}", again):
            prepare(graph, header["about"])
            for name in header["weights"]:
                _make_room_for_bias(layer_at(graph, name), tensors.get(f"graph.{name}.layer.bias"))
            weights = {name: _empty_like(layer_at(graph, name), *grid) for name, grid in header["weights"].items()}
            activations = {name: _tensor_grid(*grid) for name, grid in header["activations"].items()}
            quantized = cls(graph, weights, activations, header["about"])
            _check_types(quantized.state_dict(), tensors)
            quantized.load_state_dict(tensors)
            for quantizer in (*weights.values(), *activations.values()):
                quantizer.check()
            return quantized


def quantizer_path(tensor: str) -> str:
    """Return the path, in the graph, of the module that quantizes a tensor."""
    return f"{_ACTIVATIONS}.{tensor}"


def quantized_node(graph: fx.GraphModule, tensor: str) -> fx.Node:
    """Return the node that holds a tensor in the form that its readers get: quantized, if it has a quantizer."""
    node = next(node for node in graph.graph.nodes if node.name == tensor)
    return next((user for user in node.users if str(user.target).startswith(f"{_ACTIVATIONS}.")), node)


def saved_facts(path: Path | str) -> dict[str, Any]:
    """Return the facts in the file of a quantized model: model, method, config.

    Raises: as `QuantizedModel.load`.
    """
    return _read(path)[0]["about"]


def _read(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no quantized model at {path}")
    with (
        reading(path, "a quantized model written by dghlib", "quantize again"),
        safe_open(path, framework="pt") as file,
    ):
        header = json.loads((file.metadata() or {})["dghlib"])
        if header["format"] != _FORMAT:
            raise ValueError(f"it has format {header['format']}, this version reads {_FORMAT}")
        for part in ("about", "weights", "activations"):
            header[part].items()  # raises if it is no mapping
        for name, (bits, signed, *kind) in (header["weights"] | header["activations"]).items():
            if type(bits) is not int or type(signed) is not bool or not KINDS.keys() >= set(kind):
                raise TypeError(f"the grid of {name} has bits {bits!r}, signed {signed!r} and is {kind or 'uniform'}")
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _facts(quantizer: Quantizer) -> list[Any]:
    """Return the facts about a tensor's grid for a file: bits, sign, and the kind of any but a uniform grid."""
    kind = kind_of_grid(quantizer)
    return [quantizer.bits, quantizer.signed, *([] if kind == "uniform" else [kind])]


def _tensor_grid(bits: int, signed: bool, kind: str = "uniform") -> Quantizer:
    return unset(kind, bits, signed)


def _check_types(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a tensor of a file has another type than the network's, or is not finite."""
    for name, tensor in found.items():
        if name in wanted and tensor.dtype != wanted[name].dtype:
            raise ValueError(f"{name} is {tensor.dtype}, not {wanted[name].dtype}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")


def _empty_like(layer: Layer, bits: int, signed: bool) -> UniformQuantizer:
    shape = [1] * layer.weight.ndim
    shape[channel_axis(layer)] = layer.weight.shape[channel_axis(layer)]
    return UniformQuantizer(torch.ones(shape), torch.zeros(shape), bits=bits, signed=signed)


def _make_room_for_bias(layer: Layer, saved: Tensor | None) -> None:
    """Add the bias from the bias correction to a layer that has no bias of its own."""
    if layer.bias is None and saved is not None:
        layer.bias = frozen(torch.zeros_like(saved))


def _insert_after(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_after(node):
        call = graph.call_module(quantizer_path(site_of(node)), (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
