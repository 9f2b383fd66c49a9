"""Networks and image sets for other people's runtimes."""

from dghlib.export.onnx_file import UnsupportedOperation, export_onnx

__all__ = ["UnsupportedOperation", "export_onnx"]
