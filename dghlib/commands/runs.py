"""The commands of the book: runs and their records, data, notebooks and pages."""

import inspect
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dghlib import datasets
from dghlib.choices import look_up, whole
from dghlib.commands.files import needing
from dghlib.commands.options import Anew, Budget, Cluster, Device, Flag, Profile, Words
from dghlib.experiments import run
from dghlib.experiments.experiment import Run
from dghlib.experiments.profiles import EMBEDDED, PROFILES
from dghlib.experiments.recorded import ANEW_VARIABLE, RECORDED_VARIABLE
from dghlib.generators import GENERATORS
from dghlib.plans.catalogue import PLANS
from dghlib.quantizers import QUANTIZERS
from dghlib.running import processes
from dghlib.storage import assets


def run_plan(
    plan: Annotated[str, Parameter(help=f"one of: {', '.join(PLANS)}")],
    /,
    *,
    profile: Profile = "shapes",
    budget: Budget = "quick",
    seeds: Annotated[
        int | None, Parameter(converter=whole, help="number of repetitions (default: the budget's number)")
    ] = None,
    models: Annotated[Words, Parameter(help="networks (default: all of the profile)")] = None,
    sources: Annotated[
        Words, Parameter(help=f"sources of images: {', '.join(GENERATORS)}, real (default: those of the plan)")
    ] = None,
    bits: Annotated[Words, Parameter(help="widths, such as W8A8 W4A4")] = None,
    methods: Annotated[Words, Parameter(help=f"quantizers: {', '.join(QUANTIZERS)} (default: the plan's)")] = None,
    results: Annotated[
        Path | None, Parameter(help=f"folder of records (default: {run.RESULTS_VARIABLE} or _build/results)")
    ] = None,
    anew: Anew = False,
    cluster: Cluster = None,
    device: Device = "cpu",
) -> None:
    """Compute the missing runs of a plan and print its table."""
    with needing("book"):
        from dghlib.showing.plan_tables import table_of

    make = look_up(PLANS, plan, "plan")
    words = {"models": models, "sources": sources, "bits": bits, "methods": methods}
    chosen = {"seeds": seeds} | {name: value and list(value) for name, value in words.items()}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    _compute_anew(anew)
    known = inspect.signature(make).parameters
    for name in chosen:
        look_up(known, name, f"option of plan {plan}")
    experiments = make(profile, budget, **chosen)
    records = _records(experiments, cluster, device, results)
    print(table_of(plan, records).to_string())
    workshop = run.Workshop(results or run.results_dir())
    if came := sum(workshop.find(each) is None for each in experiments):
        print(f"{came} of {len(experiments)} records are from the repository; --anew computes them here")


def _records(
    experiments: Sequence[Run], cluster: str | None, device: str, results: Path | None = None
) -> list[run.Record]:
    """Return the records of experiments; compute the missing records here or on the given cluster."""
    if cluster:
        from dghlib.experiments.cluster import run_on_cluster

        return run_on_cluster(experiments, cluster, results=results, device=device)
    processes.check_device(device)  # of a cluster's workers they alone know
    return run.run(experiments, results=results, device=device)


def results(
    *,
    profile: Annotated[
        str | None, Parameter(help=f"only the runs of this profile: {', '.join(PROFILES)} (default: all profiles)")
    ] = None,
    list_only: Annotated[
        Flag, Parameter(name="--list", help="compute and copy nothing: list the existing and the missing records")
    ] = False,
    cluster: Cluster = None,
    device: Device = "cpu",
) -> None:
    """Compute the runs that the repository's `results/` lacks, and copy their records there."""
    with needing("book"):
        from dghlib.bookmaking import holdings

    if not run.PUBLISHED.is_dir():
        raise FileNotFoundError(f"no folder {run.PUBLISHED}: `dgh results` works only in a clone of the repository")
    new = 0 if list_only else holdings.publish(profile)
    print(holdings.coverage(profile).to_string())
    if list_only:
        return
    try:
        _records(holdings.lacking(profile), cluster, device)
    finally:
        new += holdings.publish(profile)
        print(f"{new} new records in {run.PUBLISHED}, {len(holdings.lacking(profile))} records missing")


def fetch_data(
    profile: Annotated[
        str,
        Parameter(
            help="cifar10, tiny_imagenet, coco, coco_lite, imagenet_lite or imagenet (its networks only; we may not "
            "distribute the images)"
        ),
    ],
    /,
) -> None:
    """Download and verify the files of a profile."""
    if profile in EMBEDDED:
        print(f"{profile} needs no data: its images are drawn, and its networks are part of the package")
        return
    for manifest in assets.of_profile(profile):
        path = assets.fetch(manifest, progress=True)
        verified = "verified" if manifest.sha256 else "not verified, because no checksum is published"
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, {verified}")
    if prepare := datasets.PREPARED.get(profile):
        path = prepare()
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, made from the published files")


def execute_notebook(
    name: Annotated[str, Parameter(help="name of a notebook in notebooks/, without its ending")],
    /,
    *parameters: Annotated[str, Parameter(help="NAME=VALUE; an unknown name lists the existing parameters")],
    words: Annotated[
        str,
        Parameter(show_default=False, help='more parameters in a single text, as in make: P="seeds=5 budget=quick"'),
    ] = "",
    anew: Anew = False,
) -> None:
    """Execute a notebook with other parameters."""
    with needing("book"):
        from dghlib.bookmaking import notebooks

    _compute_anew(anew)
    if Path(name).name != name:
        raise ValueError(f"name the notebook without its folder and ending, such as table2; got {name}")
    path = Path("notebooks") / f"{name}.ipynb"
    output = Path("_build/notebooks") / "own" / path.name
    notebooks.run_notebook(path, notebooks.parse_assignments([*parameters, *shlex.split(words)]), output)
    print(f"executed: {output}")


def _compute_anew(wanted: bool) -> None:
    """Ignore the repository's records, here and in the kernels of notebooks."""
    if wanted:
        os.environ[ANEW_VARIABLE] = "1"


def build(
    *,
    profile: Profile = "shapes",
    budget: Budget = "quick",
    recorded: Annotated[Flag, Parameter(help="compute nothing and show only the records of results/")] = False,
) -> None:
    """Execute all notebooks and build the book."""
    with needing("book"):
        from dghlib.bookmaking.book import build_book

    if recorded:
        os.environ[RECORDED_VARIABLE] = "1"  # also for the kernels of the notebooks
    _compute_anew(not recorded)
    page = build_book(Path(), {"profile": profile, "budget": budget})
    print(f"the book: {page}")
