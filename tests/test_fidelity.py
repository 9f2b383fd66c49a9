"""Differences of methods from their papers are read from their docstrings."""

from types import ModuleType

import pytest

from dghlib.experiments.profiles import BUDGETS
from dghlib.generators import GENERATORS, genie_d
from dghlib.quantizers import QUANTIZERS, brecq
from dghlib.showing import fidelity


@pytest.mark.parametrize("name", GENERATORS | QUANTIZERS)
def test_every_method_lists_its_differences(name: str) -> None:
    assert fidelity.told((GENERATORS | QUANTIZERS)[name])


def test_items_are_read_with_the_source_that_they_differ_from() -> None:
    module = ModuleType("made_up")
    module.__doc__ = """A method.

Source: somebody.

Differences from the paper, which leaves much open:
 1. This one
    goes on.
 2. That one, by 0.5.

Differences from the authors' code: all in one sentence.

What follows is of something else.
"""
    expected = [
        ("paper", "This one goes on."),
        ("paper", "That one, by 0.5."),
        ("authors' code", "all in one sentence."),
    ]
    assert fidelity.told(module) == expected
    assert fidelity.told(ModuleType("without")) == []


def test_the_table_has_every_item_and_its_module() -> None:
    table = fidelity.differences()
    assert len(table) > 80
    brecqs = table[table.method == "BRECQ"]
    assert len(brecqs) == 5 == (brecq.__doc__ or "").count("\n5. ") * 5
    assert set(brecqs["written in"]) == {"dghlib/quantizers/brecq.py"}


def test_numbers_in_items_match_the_settings() -> None:
    table = fidelity.amounts("quick")
    assert table.loc["GENIE", ("steps", "theirs")] == f"{genie_d.Config().steps}"
    assert table.loc["GENIE", ("steps", "quick")] == f"{BUDGETS['quick'].steps}"
    assert table.loc["BRECQ", ("iterations", "theirs")] == f"{brecq.Config().iterations}"
    paper = fidelity.amounts("paper")
    assert (paper["steps"]["theirs"] == paper["steps"]["paper"])[["ZeroQ", "GENIE", "DGH", "DeepInversion"]].all()
