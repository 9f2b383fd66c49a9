"""Networks and image sets for other runtimes. Needs the extra `onnx`: `pip install dghlib[onnx]`."""

from dghlib.export.calibration import ImageReader, PixelLoss, save_npz, save_png
from dghlib.export.onnx_file import OnnxNetwork, UnsupportedOperation, export_onnx, open_session, products_overflow

__all__ = [
    "ImageReader",
    "OnnxNetwork",
    "PixelLoss",
    "UnsupportedOperation",
    "export_onnx",
    "open_session",
    "products_overflow",
    "save_npz",
    "save_png",
]
