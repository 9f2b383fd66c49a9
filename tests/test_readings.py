"""Sentences about numbers: computed from records, and never typed."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from dghlib.showing import readings

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_ONES = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen"
_PARTS = "half|halves|thirds?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|twentieths?|hundredths?"
_WORDS = rf"{_TENS}|{_ONES}|{_PARTS}|dozens?|hundreds?|thousands?|millions?|twice|thrice|(?:two|three|ten)fold"
# "One" is a number in these phrases; otherwise it is a pronoun.
_ONE = r"one (?:or two|to|and a|point|seed|network|class|image|run|in|percent|per cent)\b"
QUANTITY = re.compile(rf"\d+(?:[.,]\d+)*|\b(?:{_WORDS})\b|\b{_ONE}", flags=re.IGNORECASE)

# Texts with digits or number words that are not about records.
NAMES = re.compile(
    r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)"  # code, roles, equations, link targets
    r"|\b(?:Tables?|Figures?|Eq\.|Algorithm|Section) A?\d+(?: and \d+)*"
    r"|\b[A-Za-z]+(?:-?V?\d+)+[A-Za-z]*\d*\b|\b\dx\d\b"  # ResNet-20, MobileNetV2, W4A4, 3x3
    rf"|\b(?:{_ONES}|\d+)[ -]bits?\b"  # the width of a column
    r"|\bpowers?[ -]of[ -]two\b",  # HPTQ's grids
    flags=re.DOTALL | re.IGNORECASE,
)

# Quantities that are definitions, not results.
ALLOWED = {
    "figure2": {"50", "100"},  # the ends of a scale
    "leaderboard": {"95", "5"},  # the confidence level, and its consequences
    "table3": {"50"},  # the overlap of mAP50
    "table3_coco": {"50"},
    "table4": {"eighth"},  # the number of batches of the plan
}


def typed_quantities(text: str) -> list[str]:
    """Return the quantities in a page's prose that are typed, not computed from records."""
    return QUANTITY.findall(NAMES.sub(" ", text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_quantity_is_typed_in_a_reading(path: Path) -> None:
    """The first cell, which states the question, may contain the settings of the experiment."""
    cells = nbformat.read(path, as_version=4).cells[1:]
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert set(typed_quantities(prose)) - ALLOWED.get(path.stem, set()) == set()


def record(source: str, top1: float, *, model: str = "a", bits: int = 4, seed: int = 0, **more: Any) -> dict[str, Any]:
    config = {"weight_bits": bits, "activation_bits": bits, "bits": "full"} | more
    return {
        "inputs": {
            "profile": "shapes",
            "model": {"name": model},
            "test_images": 100,
            "quantizer": {"method": "hptq", "config": config},
            "images": {"source": source, "config": {"seed": seed, "num_images": 16}},
        },
        "outputs": {"top1": top1, "generation_seconds": 60.0, "quantization_seconds": 30.0},
    }


def as_it_is(top1: float, model: str = "a") -> dict[str, Any]:
    inputs = {"profile": "shapes", "model": {"name": model}, "test_images": 100, "quantizer": {"method": "float"}}
    return {"inputs": inputs, "outputs": {"top1": top1}}


RECORDS = [
    *(record("dgh", 70.0 + seed, seed=seed) for seed in range(3)),
    *(record("real", 75.0 - seed, seed=seed) for seed in range(2)),
    record("dgh", 40.0, model="b"),
    record("real", 39.0, model="b"),
    as_it_is(80.0),
    as_it_is(50.0, "b"),
]


def test_ranges_span_the_means_of_settings_over_common_seeds() -> None:
    gaps = readings.gaps(RECORDS, "dgh", "real")
    assert sorted(gaps) == [-4.0, 1.0]  # -5 and -3 with the seeds 0 and 1; the third has no real images
    assert readings.above(gaps) == "-4.0 to +1.0"
    assert readings.below(gaps) == "-1.0 to 4.0"
    assert readings.most(gaps) == "4.0"
    assert readings.median(gaps) == "-1.5"
    assert readings.above(readings.gaps(RECORDS, "dgh", "real", model="b")) == "+1.0"
    assert readings.between(readings.lost(RECORDS, source="dgh")) == "9.0 to 10.0"
    assert readings.between(readings.minutes(RECORDS)) == "1.5"
    assert readings.whole(RECORDS) == "50.0 to 80.0"
    assert sorted(readings.spreads(RECORDS)) == pytest.approx([0.5**0.5, 1.0])


def test_runs_that_differ_otherwise_are_not_paired() -> None:
    other = record("real", 20.0, model="c", bits=8), record("dgh", 20.0, model="c")
    assert len(readings.gaps([*RECORDS, *other], "dgh", "real")) == 2
    spared = [record("dgh", 30.0, model="d"), record("real", 10.0, model="d", placement="brecq")]
    assert len(readings.gaps([*RECORDS, *spared], "dgh", "real")) == 2
    assert len(readings.gaps([*RECORDS, *spared], "dgh", "real", but=["placement"])) == 3
    assert readings.gaps(spared, "brecq", "every_tensor", by="placement", but=["source"]).tolist() == [-20.0]


def test_without_records_a_sentence_says_so() -> None:
    for none in (readings.gaps([], "dgh", "real"), readings.gaps(RECORDS, "genq", "real"), readings.lost(RECORDS[:2])):
        assert readings.above(none) == readings.between(none) == readings.most(none) == readings.NOT_RECORDED
    unseen = readings.seen([], "top1", "top1", "dgh", "real")
    assert readings.above(unseen.dgh - unseen.real) == readings.whole([]) == readings.NOT_RECORDED


def test_numbers_are_glued_under_names_for_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, str] = {}
    monkeypatch.setattr(readings, "glue", lambda name, text, display: said.update({name: text}))
    readings.say(hours=4155, points="0.3 to 2.1")
    assert said == {"hours": "4 155", "points": "0.3 to 2.1"}


@pytest.mark.parametrize(
    "sentence",
    [
        "thirteen under AdaRound", "ten to some twenty below", "two logits", "HPTQ loses 42.7 points",
        "three of these five", "within half a point", "it loses one or two", "each cell is one seed", "twice as many",
    ],
)  # fmt: skip
def test_a_typed_quantity_is_found(sentence: str) -> None:
    assert typed_quantities(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "ResNet-20 at W4A4 in {doc}`table1`", "{glue:text}`loss_2` points", "at four bits, with 8-bit weights",
        "as in Table 2", "each one of them", "3x3 convolutions", "one that learns", "a power of two",
    ],
)  # fmt: skip
def test_names_are_not_quantities(sentence: str) -> None:
    assert typed_quantities(sentence) == []
