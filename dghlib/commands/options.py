"""The options that several commands share, each with its help."""

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
Force = Annotated[Flag, Parameter(help="replace a file that exists, without asking")]
Images = Annotated[Path | None, Parameter(help="a set that `dgh generate` wrote to a .safetensors file")]
Real = Annotated[
    str | None, Parameter(help="in the place of --images: a data set's name, an .npz file or image folder")
]
Seed = Annotated[int, Parameter(converter=whole, help="which real images")]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        show_default=False,
        help="NAME=VALUE, may be given several times; `dgh settings METHOD` lists them",
    ),
]
Preset = Annotated[str, Parameter(help="settings by name; `dgh settings METHOD` lists them")]
Profile = Annotated[str, Parameter(help=f"one of: {', '.join(PROFILES)}")]
Budget = Annotated[str, Parameter(help=f"one of: {', '.join(BUDGETS)}")]
Cluster = Annotated[
    str | None,
    Parameter(help="compute on a Dask cluster: tcp://HOST:8786, or the .json file of its scheduler"),
]
Anew = Annotated[Flag, Parameter(help="compute what the repository's results/ has records of, too")]
Words = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)]
