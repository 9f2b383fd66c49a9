"""ONNX files of float and quantized networks.

Quantized networks have integers: weights of 4, 8 or 16 bits with a scale per output channel, biases of 32 bits, and
activations through pairs of QuantizeLinear and DequantizeLinear, which runtimes turn into integer kernels (see
`integers`). torch's own exporter writes 4-bit ranges as 8-bit ranges without a warning, so it is not used here.
"""

import importlib.metadata
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dghlib.export.curves import away_from_middles
from dghlib.export.integers import clips_codes, keep_grid, quantize
from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation, shape_of, source
from dghlib.export.translations import constant_tensor, translation_of
from dghlib.export.uneven import quantize_unevenly
from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.uneven import LogQuantizer, TwinQuantizer
from dghlib.storage.records import write_atomically

__all__ = ["OnnxNetwork", "UnsupportedOperation", "export_onnx", "open_session", "products_overflow"]

log = logging.getLogger(__name__)

INPUT, BATCH = "images", "batch"
_OUTPUTS = "outputs"  # entry of the metadata: the file's outputs, by key of the network's outputs


def export_onnx(
    path: Path | str, model: FloatModel, quantized: QuantizedModel | None = None, *, signed_weights: bool = True
) -> onnx.ModelProto:
    """Write a network to an ONNX file (opset 21), in float or quantized; return the model.

    Input "images": float32 (batch, C, H, W), normalised as the library's images are; the mean and the standard
    deviation are in the file's metadata. Outputs: those of the network, float32. If the network returns a dictionary,
    as detectors do, the metadata's "outputs" has the name in the file for each key.

    Args:
        path: the file; an existing file is replaced when the new one is complete.
        model: the float network.
        quantized: its quantized copy, which is written instead.
        signed_weights: whether weights are signed bytes. Processors with VNNI add their products with unsigned bytes
            several times as fast; on x86 processors without it, onnxruntime overflows unless an option is set (see
            `open_session`). Unsigned weights are correct wherever the file runs, and so are signed weights of 7 bits,
            2 of whose products fit into 16 bits.

    Raises:
        UnsupportedOperation: an operation has no translation; the message names it and its place.
        OSError: the file cannot be written; no partial file remains.
    """
    traced = quantized.graph if quantized is not None else folded_graph(model)
    graph = OnnxGraph(traced, signed_weights=signed_weights)
    answer: Any = None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            graph.values[node] = INPUT
        elif node.op == "output":
            answer = node.args[0]
        elif node.op == "get_attr":
            graph.values[node] = constant_tensor(graph, node)
        elif isinstance(grid := graph.module(node), UniformQuantizer):
            graph.values[node] = quantize(graph, node, grid)
        elif isinstance(grid, LogQuantizer | TwinQuantizer):
            graph.values[node] = quantize_unevenly(graph, node, grid)
        elif "shape" in node.meta or node.meta.get("holds"):  # otherwise a size, which is constant in the file
            graph.values[node] = keep_grid(graph, node, _translated(graph, node))

    outputs = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, fx.Node)]
    shapes = {graph.value(node, ""): (BATCH, *shape_of(node)[1:]) for node in outputs}
    finished = graph.model({INPUT: (BATCH, *model.image_shape)}, shapes)
    facts = {"dghlib": importlib.metadata.version("dghlib"), "model": model.name, "mean": model.mean, "std": model.std}
    about = facts | (quantized.about if quantized is not None else {})
    if isinstance(answer, dict):
        if nested := [key for key, leaf in answer.items() if tree_leaves(leaf) != [leaf]]:
            raise UnsupportedOperation(
                f"of the network's outputs, {nested} hold several tensors: return each by itself"
            )
        about[_OUTPUTS] = {key: graph.value(node, "") for key, node in answer.items() if isinstance(node, fx.Node)}
    onnx.helper.set_model_props(finished, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(finished, full_check=True)
    write_atomically(path, lambda temporary: onnx.save(finished, temporary))
    if quantized is not None and signed_weights and _wide(quantized) and products_overflow():
        log.warning(
            "%s: on this processor 8-bit products overflow under onnxruntime's default options, and outputs are wrong. "
            "Set the option session.x64quantprecision to 1, as dghlib.export.open_session does, or write unsigned "
            "weights (signed_weights=False, --unsigned-weights)",
            path,
        )
    return finished


def _wide(quantized: QuantizedModel) -> bool:
    """Return whether weights have all 8 bits of a byte."""
    return any(grid.bits == 8 for grid in quantized.weight_quantizers().values())


def _translated(graph: OnnxGraph, node: fx.Node) -> str | list[str]:
    if clips_codes(graph, node):
        return source(graph, node)
    try:
        with away_from_middles(graph, node) as otherwise:
            return (otherwise or translation_of(graph, node))(graph, node)
    except (KeyError, TypeError, IndexError) as error:
        given = ", ".join([*map(repr, node.args), *(f"{name}={value!r}" for name, value in node.kwargs.items())])
        raise UnsupportedOperation(
            f"{node.name} cannot be written to ONNX with the arguments ({given}): {type(error).__name__} {error}"
        ) from error


@cache
def products_overflow() -> bool:
    """Return whether the sum of 2 products of bytes overflows 16 bits here, under onnxruntime's default options."""
    count, largest = 64, (255, 127)
    weights = onnx.numpy_helper.from_array(np.full((count, count), largest[1], np.int8), "weights")
    node = onnx.helper.make_node("MatMulInteger", ["codes", "weights"], ["sums"])
    codes = onnx.helper.make_tensor_value_info("codes", onnx.TensorProto.UINT8, [1, count])
    sums = onnx.helper.make_tensor_value_info("sums", onnx.TensorProto.INT32, [1, count])
    graph = onnx.helper.make_graph([node], "products", [codes], [sums], [weights])
    file = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"codes": np.full((1, count), largest[0], np.uint8)})
    return bool((found != count * largest[0] * largest[1]).any())


def open_session(path: Path | str, *, optimized: bool = True, threads: int = 0) -> onnxruntime.InferenceSession:
    """Return an onnxruntime session on the CPU that runs a file of `export_onnx`; 0 threads means all cores.

    On x86 processors without VNNI, onnxruntime's fast products of 8-bit integers overflow 16 bits without a warning,
    and logits are wrong by many steps. The option `session.x64quantprecision` prevents this and is set here; set it
    wherever you run such a file. Products of integer weights with tensors in float or on uneven grids are computed with
    tensors rounded to bytes, unless `session.qdq_matmulnbits_accuracy_level` is 1, as here. `optimized=False` computes
    node by node, as the simulation does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not an ONNX file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no ONNX file at {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors, which have no other common class
        raise ValueError(f"onnxruntime cannot run {path}: {error}") from error


class OnnxNetwork(nn.Module):
    """An ONNX file that replaces a network: normalised images (N, C, H, W) in, logits out, by onnxruntime.

    A detector's file returns the tensors of its head, by name; a file with several outputs returns a tuple.
    """

    def __init__(self, path: Path | str, threads: int = 0):
        super().__init__()
        self.session = open_session(path, threads=threads)
        self.input_name = self.session.get_inputs()[0].name
        about = self.session.get_modelmeta().custom_metadata_map
        self.name: str = json.loads(about.get("model", '""'))  # of the float network
        self.outputs: dict[str, str] = json.loads(about.get(_OUTPUTS, "{}"))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
        wanted = list(self.outputs.values()) or None
        found = [torch.from_numpy(value) for value in self.session.run(wanted, {self.input_name: images.numpy()})]
        if self.outputs:
            return dict(zip(self.outputs, found, strict=True))
        return found[0] if len(found) == 1 else tuple(found)
