"""Images from a trained network: one module per method, each with a `Config`, `PRESETS`, a `VERSION` and `generate`.

`generate(model, config, *, device="cpu", progress=True, checkpoint=None)` returns images (num_images, C, H, W), float32
in the normalised space of `model`, on the CPU. The model is not changed. With `checkpoint`, a killed run continues from
that file to the same images. Every method raises ValueError if weights or statistics are not finite, and
FloatingPointError, which names the step, if the loss becomes NaN. Methods that match batch norms raise NoBatchNorm if
images reach none. The modules list their other errors.
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
# These need attention or layer norms; the others, except noise and GenQ, need batch norm.
FOR_TRANSFORMERS = ("psaq_vit", "mimiq", "dgh_vit")
