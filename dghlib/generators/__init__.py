"""Images from a trained network: one module a method, each with a `Config`, `PRESETS`, a `VERSION` and `generate`."""

from types import ModuleType

from dghlib.generators import dgh, noise, zeroq

GENERATORS: dict[str, ModuleType] = {
    "noise": noise,
    "zeroq": zeroq,
    "dgh": dgh,
}
