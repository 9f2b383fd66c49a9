"""The differences of our methods from their authors' versions, read from the modules, so that no page needs updates.

The docstring of every method has its source and, under "Differences", its differences; the authors' amounts are those
of its presets.
"""

import re
from collections.abc import Iterator
from types import ModuleType

import pandas as pd

from dghlib.experiments.experiment import published
from dghlib.experiments.profiles import BUDGETS
from dghlib.generators import GENERATORS
from dghlib.plans.methods import BLOCK_BY_BLOCK
from dghlib.plans.parts import quantizer_config, source_config
from dghlib.quantizers import QUANTIZERS
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES
from dghlib.storage.records import plain

_HEADING = re.compile(r"^Differences(?: from (?P<whose>[^:.]*?))?(?:, [^:]*)?:", flags=re.MULTILINE)
_ITEM = re.compile(r"^ ?\d+\. ", flags=re.MULTILINE)
_TITLES = TITLES | QUANTIZER_TITLES | {"psaq_vit": "PSAQ-ViT"}
_AMOUNTS = ("steps", "iterations", "batch_size", "learning_rate", "rounding_rate")


def differences() -> pd.DataFrame:
    """Return the differences of each method from its authors' version: from what, the text, and the module."""
    rows = [
        {"method": title, "from": whose, "difference": text, "written in": module.__name__.replace(".", "/") + ".py"}
        for title, module in _methods()
        for whose, text in told(module)
    ]
    return pd.DataFrame(rows)


def told(module: ModuleType) -> list[tuple[str, str]]:
    """Return the differences in a module's docstring, each with its origin: "paper", "authors' code".

    A text without numbered items is one entry.
    """
    text = module.__doc__ or ""
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    found: list[tuple[str, str]] = []
    for heading, end in zip(headings, ends, strict=False):  # without headings, one end remains
        body = text[heading.end() : end]
        items = _ITEM.split(body)[1:] or [body.split("\n\n")[0]]
        found += [((heading["whose"] or "both").removeprefix("the "), " ".join(item.split())) for item in items]
    return found


def amounts(budget: str = "quick", width: str = "W4A4") -> pd.DataFrame:
    """Return the authors' amounts for a batch of images or a unit that learns, and a budget's: methods by amount.

    Args:
        budget: a name in `BUDGETS`.
        width: of the quantizers.
    """
    spend, rows = BUDGETS[budget], {}
    for name in GENERATORS:
        ours = plain(source_config(name, spend, 0, ""))
        rows[_TITLES[name]] = _beside(plain(published(name, ours)), ours, budget)
    for name in BLOCK_BY_BLOCK:
        theirs, ours = QUANTIZERS[name].Config(), quantizer_config(name, width, spend)
        rows[QUANTIZER_TITLES[name]] = _beside(plain(theirs), plain(ours), budget)
    table = pd.DataFrame.from_dict({name: row for name, row in rows.items() if row}, orient="index").fillna("")
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table


def _beside(theirs: dict[str, object], ours: dict[str, object], budget: str) -> dict[tuple[str, str], str]:
    """Return the amounts that both settings have, (amount, whose)."""
    return {
        (name.replace("_", " "), whose): f"{config[name]:g}"
        for name in _AMOUNTS
        if name in theirs and name in ours
        for whose, config in (("theirs", theirs), (budget, ours))
    }


def _methods() -> Iterator[tuple[str, ModuleType]]:
    for name, module in (GENERATORS | QUANTIZERS).items():
        yield _TITLES[name], module
