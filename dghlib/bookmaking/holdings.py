"""The required content of the repository's `results/`: the runs of the published book, and the missing ones.

Runs are computed where all others are, in the folder of `run.results_dir`, and copied to `results/` when they are
complete, so an existing record of this machine is published without being computed again. A record that was made from
modified code is not published, because nobody else could make it.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from dghlib.choices import UnknownName, look_up
from dghlib.experiments import costs, run
from dghlib.experiments.experiment import Run
from dghlib.experiments.profiles import PROFILES
from dghlib.plans.catalogue import PLANS
from dghlib.showing.leaderboard import all_records
from dghlib.storage.records import fingerprint

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Holding:
    """The runs of some plans that `results/` should hold.

    Attributes:
        plans: names in `PLANS`.
        profile, budget: names in `PROFILES` and `BUDGETS`.
        models: networks of the profile; None for all.
        seeds: repetitions; None for the budget's.
    """

    profile: str
    budget: str
    plans: tuple[str, ...]
    models: tuple[str, ...] | None = None
    seeds: int | None = None

    def runs(self, plan: str, budget: str | None = None) -> Sequence[Run]:
        """Return the runs of a plan, at another budget if one is given."""
        return PLANS[plan](self.profile, budget or self.budget, seeds=self.seeds, models=self.models)


_OF_CIFAR10 = ("table1", "table2", "table4", "table5", "sources", "output_weights", "no_images", "compensation")
_SMALL = ("cifar10_resnet20", "cifar10_mobilenetv2")
_FIGURES = tuple(f"figure{number}" for number in range(1, 8))
_PICTURES = ("figure8", "figure9")
_OUTSIDE = ("files", "onnxruntime")
_OF_TRANSFORMERS = ("genq_table4", "every_tensor", "without_batch_norm", "transformer_layers")
_FINE_TUNED = ("genq_table3", "genq_figure4", "genie_tableA2", "intraq_table3")
# Not required for all networks and seeds of shapes.
_FEWER = (
    *_FINE_TUNED,
    "statistics_options",
    "trained_together",
    *_OF_TRANSFORMERS,
    "qimera_amounts",
    "qimera_table2",
    "table4_in_full",
    "table3",
    "boxes",
    "head_outputs",
    "folded_head",
    "layers",
    "image_costs",
    "gallery",
    *_PICTURES,
    *_OUTSIDE,
)
HOLDINGS = (
    Holding("shapes", "quick", tuple(name for name in PLANS if name not in _FEWER)),
    Holding("shapes", "quick", _PICTURES, seeds=1),
    Holding("shapes", "quick", ("layers",), ("shapes_inverted",), seeds=1),
    Holding("shapes", "quick", ("statistics_options",), ("shapes_residual", "shapes_inverted"), seeds=1),
    Holding("shapes", "quick", ("image_costs",), ("shapes_residual",)),
    Holding("shapes", "quick", ("gallery", *_OUTSIDE), ("shapes_residual",), seeds=1),
    Holding("shapes", "quick", ("qimera_amounts", "qimera_table2"), ("shapes_residual",), seeds=1),
    Holding("shapes", "quick", (*_FINE_TUNED, "trained_together"), ("shapes_residual",), seeds=1),
    Holding("shapes_detection", "quick", ("table3",)),
    Holding("coco_lite", "quick", ("table3",), ("coco_fastestdet",)),
    Holding("coco_lite", "quick", ("head_outputs",), ("coco_fastestdet",), seeds=1),
    Holding("coco_lite", "quick", ("folded_head",), ("coco_fastestdet", "coco_fastestdet_folded_head"), seeds=1),
    Holding("shapes_detection", "quick", ("figure8", "boxes"), ("shapes_ssdlite",), seeds=1),
    Holding("cifar10", "standard", (*_OF_CIFAR10, *_FIGURES), _SMALL),
    Holding("cifar10", "standard", _PICTURES, _SMALL, seeds=1),
    Holding("cifar10", "standard", ("quantizers",), ("cifar10_resnet20",)),
    Holding("cifar10", "standard", ("quantizers",), ("cifar10_mobilenetv2",), seeds=2),
    Holding("cifar10", "standard", ("table1", "table2", "quantizers"), ("cifar10_resnet56",), seeds=1),
    Holding("cifar10", "standard", ("placements",), ("cifar10_resnet20",), seeds=1),
    Holding("cifar10", "standard", ("genq_table3", "intraq_table3"), ("cifar10_resnet20",)),
    Holding("cifar10", "standard", ("genq_figure4", "genie_tableA2"), ("cifar10_resnet20",), seeds=1),
    Holding("cifar10", "quick", ("dgh_settings",), ("cifar10_resnet20",), seeds=1),
    Holding("cifar10", "quick", ("output_shares",), _SMALL, seeds=1),
    Holding("shapes_transformers", "quick", _OF_TRANSFORMERS, seeds=1),
    Holding("cifar10_transformers", "quick", _OF_TRANSFORMERS, seeds=1),
    Holding("tiny_imagenet", "quick", ("output_shares",), seeds=1),
    Holding("imagenet_lite", "quick", ("table2",), seeds=1),
    Holding("imagenet_lite", "quick", ("table1", "table5", "figure4"), ("imagenet_efficientnet_lite0_128",), seeds=1),
    Holding("cifar10", "paper", ("table4_in_full",), ("cifar10_resnet20",), seeds=1),
    Holding("tiny_imagenet", "standard", ("table1", "table2", "table4"), seeds=1),
)


def plans_of(profile: str) -> list[str]:
    """Return the plans of which `results/` should hold runs for a profile, in the order of `HOLDINGS`."""
    return [plan for plan, _ in _items(profile)]


def held(plan: str, profile: str, budget: str | None = None) -> list[Run]:
    """Return the runs of a plan that `results/` should hold for a profile, or the same at another budget.

    Raises:
        UnknownName: it should hold no runs of this plan for this profile.
    """
    holders = [holding for holding in HOLDINGS if plan in holding.plans]
    look_up({holding.profile: holding for holding in holders}, profile, f"profile with runs of {plan} in results/")
    return [
        experiment for holding in holders if holding.profile == profile for experiment in holding.runs(plan, budget)
    ]


def beside(plan: str, profile: str, budget: str, computed: Sequence[run.Record]) -> list[run.Record]:
    """Return the records that a page shows which computes a sample of a plan's runs: `computed`.

    They are the published ones of the runs of `held`; `computed` stands in where there is none, and adds its other
    runs. If `results/` should hold no runs of this plan for this profile, they are `computed` alone.
    """
    try:
        shown = run.published(held(plan, profile, budget), computed)
    except UnknownName:
        return list(computed)
    known = {fingerprint(record["inputs"]) for record in shown}
    return shown + [record for record in computed if fingerprint(record["inputs"]) not in known]


def of_every_profile(plan: str, budget: str | None = None) -> list[Run]:
    """Return the runs of a plan that `results/` should hold, for all profiles that have any: see `held`."""
    return [each for name, profile in _items(None) if name == plan for each in held(plan, profile, budget)]


def lacking(profile: str | None = None) -> list[Run]:
    """Return the runs that `results/` lacks, for one profile or for all: first repetitions first.

    Raises:
        UnknownName: there is no such profile; also raised by `publish` and `coverage`.
    """
    wanted = dict.fromkeys(experiment for plan, name in _items(profile) for experiment in held(plan, name))
    missing = _without_record(wanted)
    return sorted(missing, key=lambda each: each.seed)


def _without_record(experiments: Iterable[Run]) -> list[Run]:
    published = run.Workshop(run.PUBLISHED)
    return [experiment for experiment in experiments if published.find(experiment) is None]


def publish(profile: str | None = None) -> int:
    """Copy the records that `results/` lacks and this machine has; return their number."""
    made, published, count = run.Workshop(run.results_dir()), run.Workshop(run.PUBLISHED), 0
    for experiment in lacking(profile):
        if (record := made.find(experiment)) is None:
            continue
        if record["provenance"]["modified"]:
            path = made.record_path(experiment)
            log.warning("%s: not published, from modified code; delete %s to compute it again", experiment.title, path)
            continue
        published.keep(experiment, record)
        count += 1
    return count


def coverage(profile: str | None = None) -> pd.DataFrame:
    """Return, for every plan and profile, the required runs, the existing ones, and the cost of the rest."""
    units, rows = costs.unit_costs(all_records()), []
    for plan, name in _items(profile):
        wanted = held(plan, name)
        missing = _without_record(wanted)
        hours = costs.seconds_in_turn({plan: missing}, units)[plan] / 3600
        rows.append((name, plan, len(wanted), len(wanted) - len(missing), round(hours, 1)))
    table = pd.DataFrame(rows, columns=["profile", "plan", "runs", "recorded", "core-hours left"])
    return table.set_index(["profile", "plan"])


def _items(profile: str | None) -> Iterator[tuple[str, str]]:
    """Yield (plan, profile) of all holdings, each once."""
    if profile is not None:
        look_up(PROFILES, profile, "profile")
    pairs = [(plan, holding.profile) for holding in HOLDINGS for plan in holding.plans]
    yield from (pair for pair in dict.fromkeys(pairs) if profile in (None, pair[1]))
