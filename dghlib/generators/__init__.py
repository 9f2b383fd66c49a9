"""Images from a trained network: one module a method, each with a `Config`, `PRESETS`, a `VERSION` and `generate`."""

from types import ModuleType

from dghlib.generators import deep_inversion, dgh, genie_d, genq, intraq, noise, psaq_vit, qimera, zeroq

GENERATORS: dict[str, ModuleType] = {
    "noise": noise,
    "zeroq": zeroq,
    "deep_inversion": deep_inversion,
    "qimera": qimera,
    "intraq": intraq,
    "genie_d": genie_d,
    "dgh": dgh,
    "genq": genq,
    "psaq_vit": psaq_vit,
}
FOR_TRANSFORMERS = ("psaq_vit",)  # these need attention; the others, noise and GenQ apart, need batch norm
