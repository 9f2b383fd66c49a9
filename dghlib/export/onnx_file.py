"""ONNX files of float and quantized networks.

Quantized ones carry integers: weights as 4-, 8- or 16-bit initializers with a scale per output channel, activations
through pairs of QuantizeLinear and DequantizeLinear, which runtimes turn into integer kernels. torch's own exporter
writes 4-bit ranges as 8-bit ones without a word, so nothing of it is used here.

Weights go into the narrowest integer type that holds them. Tensors of exactly 4, 8 or 16 bits go into integers of that
width, those of other widths into 8-bit integers after a Clip to the grid's ends.
"""

import json
from pathlib import Path

import onnx
from torch import fx
from torch.utils._pytree import tree_leaves

import dghlib
from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation
from dghlib.export.translations import constant_tensor, shape_of, translation_of
from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.operations import MAX_POOLING, Kind, does, kind_of
from dghlib.records import write_atomically

__all__ = ["UnsupportedOperation", "export_onnx"]

INPUT, BATCH = "images", "batch"


def export_onnx(path: Path, model: FloatModel, quantized: QuantizedModel | None = None) -> onnx.ModelProto:
    """Write a network to an ONNX file (opset 21), in float or quantized; return the model.

    Input "images": float32 (batch, C, H, W), normalised as the library's images are; the mean and the standard
    deviation are in the file's metadata. Outputs: the network's, float32.

    Args:
        path: the file; what is there is replaced once the new one is complete.
        model: the float network.
        quantized: its quantized copy, to be written in its place.

    Raises:
        UnsupportedOperation: an operation has no translation; the message says which and where.
        OSError: the file cannot be written; nothing is left behind.
    """
    traced = quantized.graph if quantized is not None else folded_graph(model)
    graph = OnnxGraph(traced)
    outputs: list[fx.Node] = []
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            graph.values[node] = INPUT
        elif node.op == "output":
            outputs = [leaf for leaf in tree_leaves(node.args) if isinstance(leaf, fx.Node)]
        elif node.op == "get_attr":
            graph.values[node] = constant_tensor(graph, node)
        elif isinstance(grid := graph.module(node), UniformQuantizer):
            read = node.all_input_nodes[0]
            pooled = any(does(traced, reader, MAX_POOLING) for reader in node.users)
            # onnxruntime has no maximum of 4-bit integers
            graph.values[node] = graph.quantize(graph.value(read, ""), grid, read.name, four_bits=not pooled)
        elif kind_of(traced, node) is not Kind.NOTHING:
            graph.values[node] = translation_of(graph, node)(graph, node)

    shapes = {graph.value(node, ""): (BATCH, *shape_of(node)[1:]) for node in outputs}
    finished = graph.model({INPUT: (BATCH, *model.image_shape)}, shapes)
    facts = {"dghlib": dghlib.__version__, "model": model.name, "mean": model.mean, "std": model.std}
    about = facts | (quantized.about if quantized is not None else {})
    onnx.helper.set_model_props(finished, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(finished, full_check=True)
    write_atomically(path, lambda temporary: onnx.save(finished, temporary))
    return finished
