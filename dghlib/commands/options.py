"""The options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dghlib import models
from dghlib.choices import whole
from dghlib.experiments.profiles import BUDGETS, PROFILES

Model = Annotated[
    str,
    Parameter(
        help=f"{', '.join(models.MODELS)}; timm:NAME, a network of timm; or module:function that returns a FloatModel"
    ),
]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, ...")]
Flag = Annotated[bool, Parameter(show_default=False)]
Force = Annotated[Flag, Parameter(help="replace an existing file without asking")]
Images = Annotated[Path | None, Parameter(help="a set of images that `dgh generate` wrote to a .safetensors file")]
Real = Annotated[
    str | None, Parameter(help="instead of --images: the name of a data set, an .npz file or an image folder")
]
Seed = Annotated[int, Parameter(converter=whole, help="seed for the choice of real images")]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        show_default=False,
        help="NAME=VALUE, can be given several times; `dgh settings METHOD` lists the names",
    ),
]
Preset = Annotated[str, Parameter(help="name of a preset; `dgh settings METHOD` lists the presets")]
Profile = Annotated[str, Parameter(help=f"one of: {', '.join(PROFILES)}")]
Budget = Annotated[str, Parameter(help=f"one of: {', '.join(BUDGETS)}")]
Cluster = Annotated[
    str | None,
    Parameter(help="compute on a Dask cluster: tcp://HOST:8786, or the .json file of its scheduler"),
]
Anew = Annotated[Flag, Parameter(help="also compute the runs whose records are in the repository's results/")]
Words = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)]
