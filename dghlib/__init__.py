"""dghlib: calibration images from a trained network without any data, and quantized networks from those images."""

from importlib import metadata

from dghlib.models import FloatModel

__version__ = metadata.version("dghlib")
__all__ = ["FloatModel", "__version__"]
