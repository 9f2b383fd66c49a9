"""Quantized copies of trained networks, each method a module with `Config`, `VERSION` and `quantize`.

Methods with several sets of settings name them in `PRESETS`; `presets_of` returns them for every method.
"""

from types import ModuleType
from typing import Any

from dghlib.quantizers import (
    adadfq,
    adaround,
    ait,
    brecq,
    compensated,
    dfq,
    erq,
    gdfq,
    genie_m,
    genq_qat,
    hptq,
    intraq_qat,
    lsq,
    ocs,
    ptq4vit,
    qdrop,
    qimera_qat,
    repq_vit,
    squant,
    synq,
)
from dghlib.quantizers.quantized_model import QuantizedModel, saved_facts
from dghlib.quantizers.reconstruction import UnitError
from dghlib.quantizers.report import Noise, in_float, noise_report, unit_errors
from dghlib.quantizers.tracing import UntraceableNetwork

__all__ = [
    "QUANTIZERS",
    "WITHOUT_IMAGES",
    "Noise",
    "QuantizedModel",
    "UnitError",
    "UntraceableNetwork",
    "in_float",
    "noise_report",
    "presets_of",
    "saved_facts",
    "unit_errors",
]

QUANTIZERS: dict[str, ModuleType] = {
    "hptq": hptq,
    "adaround": adaround,
    "brecq": brecq,
    "qdrop": qdrop,
    "genie_m": genie_m,
    "lsq": lsq,
    "genq_qat": genq_qat,
    "intraq_qat": intraq_qat,
    "ait": ait,
    "synq": synq,
    "gdfq": gdfq,
    "qimera_qat": qimera_qat,
    "adadfq": adadfq,
    "squant": squant,
    "dfq": dfq,
    "ocs": ocs,
    "compensated": compensated,
    "repq_vit": repq_vit,
    "ptq4vit": ptq4vit,
    "erq": erq,
}
# Methods whose `quantize` takes None instead of images.
WITHOUT_IMAGES = ("squant", "dfq", "ocs", "gdfq", "qimera_qat", "adadfq")


def presets_of(method: ModuleType) -> dict[str, Any]:
    """Return the settings of a quantizer by name; "default" is one of them."""
    return getattr(method, "PRESETS", {"default": method.Config()})
