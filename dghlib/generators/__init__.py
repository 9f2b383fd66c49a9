"""Images from a trained network: one module a method, each with a `Config`, `PRESETS`, a `VERSION` and `generate`.

`generate(model, config, *, device="cpu", progress=True, checkpoint=None)` returns images (num_images, C, H, W), float32
in the normalised space of `model`, on the CPU. The model is not changed. With `checkpoint`, a run that was killed
continues from that file to the same images. Every method raises ValueError for weights or statistics that are not
finite, and FloatingPointError, which names the step, where the loss becomes NaN; those that match batch norms raise
NoBatchNorm if images reach none. The module says what else.
"""

from types import ModuleType

from dghlib.generators import (
    deep_inversion,
    dgh,
    dgh_vit,
    genie_d,
    genq,
    intraq,
    mimiq,
    noise,
    psaq_vit,
    qimera,
    zeroq,
)

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
    "mimiq": mimiq,
    "dgh_vit": dgh_vit,
}
# These need attention or layer norms; the others, noise and GenQ apart, need batch norm.
FOR_TRANSFORMERS = ("psaq_vit", "mimiq", "dgh_vit")
