"""dghlib: calibration images from a trained network without any data, and quantized networks from those images."""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dghlib.models import FloatModel

__version__ = metadata.version("dghlib")
__all__ = ["FloatModel", "__version__"]


def __getattr__(name: str) -> Any:
    """Return `FloatModel`, whose import brings torch; `dgh --help` need not wait for this."""
    if name == "FloatModel":
        from dghlib.models import FloatModel

        return FloatModel
    raise AttributeError(f"module 'dghlib' has no attribute {name!r}")
