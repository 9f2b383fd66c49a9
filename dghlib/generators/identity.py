"""The fingerprint of generated images: of the network, the method and its version, and its settings."""

from typing import Any

from dghlib.models import FloatModel
from dghlib.storage.records import fingerprint


def images_fingerprint(model: FloatModel, method: str, version: int, config: Any) -> str:
    """Return the name under which the images of a run are kept and by which its checkpoint is recognised."""
    return fingerprint(
        {
            "weights": model.sha256(),
            "image_shape": model.image_shape,
            "normalisation": [model.mean, model.std],
            "method": method,
            "version": version,
            "config": config,
        }
    )
