"""Variation by chance: repetitions are compared with runs of the same inputs."""

from typing import Any

import pandas as pd
import pytest

from dghlib.showing import chance, readings

NAMED = "Linux x86_64, AMD EPYC (cpu family 25, model 17), AVX512, 1 threads"


def _row(seed: int, top1: float, differs: str = "", recorded: float | None = None, on: str = NAMED) -> dict[str, Any]:
    run = {"run": f"brecq, seed {seed}", "method": "brecq", "bits": "W2A4", "source": "real", "seed": seed}
    facts = {"recorded": recorded, "recorded_on": on, "seeds": [80.0, 82.0]}
    return run | {"differs": differs, "top1": top1} | facts


RECORD = {
    "outputs": [
        *(_row(0, top1, differs, 80.5) for top1, differs in ((80.0, ""), (79.0, "2 threads"), (80.2, "last bits"))),
        *(
            _row(1, top1, differs, 82.0, "Linux x86_64, x86_64, 1 threads")
            for top1, differs in ((82.0, ""), (82.3, "2 threads"), (82.0, "last bits"))
        ),
    ]
}


def test_each_repetition_is_compared_with_the_run_of_its_seed() -> None:
    points = chance.changes(RECORD).groupby("differs").points.apply(sorted)
    assert points["2 threads"] == pytest.approx([-1.0, 0.3])
    assert points["last bits"] == pytest.approx([0.0, 0.2])
    assert points[chance.OTHER] == pytest.approx([0.5])
    assert points[chance.UNNAMED] == pytest.approx([0.0])


def test_the_table_has_seeds_beside_other_causes_of_variation() -> None:
    (row,) = chance.table(RECORD).reset_index().to_dict("records")
    assert (row["method"], row["images"], row["runs"], row["seeds ±"]) == ("BRECQ", "Real data", 2, "1.41")
    assert (row["2 threads"], row["last bits"]) == ("0.52 (1.00)", "0.10 (0.20)")
    assert (row[chance.OTHER], row[chance.UNNAMED]) == ("0.35 (0.50)", "0.00 (0.00)")
    assert row["top-1"] == "81.0"
    assert "no records" in chance.table(None).columns
    assert chance.changes(None).empty


def test_a_deviation_of_differences_is_that_of_the_results() -> None:
    generator = pd.Series(range(1, 2001)).sample(frac=1, random_state=0).to_numpy()
    one, other = (pd.Series(part, dtype=float) for part in (generator[:1000], generator[1000:]))
    assert chance.deviation(one - other) == pytest.approx(pd.concat([one, other]).std(), rel=0.05)


def test_sentences_count_differences_beyond_those_of_seeds() -> None:
    moved = chance.changes(RECORD)
    assert chance.equal(moved.points) == "2 of 6"
    assert chance.beyond(moved) == "0 of 6"
    assert chance.beyond(moved.assign(points=2.0, seeds=[[80.0, 82.0]] * 3 + [[80.0]] * 3)) == "3 of 3"
    assert (chance.size(moved.points), chance.size_of_seeds(moved)) == ("0.3", "1.4")
    nothing = moved[moved.points > 5]
    for said in (chance.size(nothing.points), chance.size_of_seeds(nothing), chance.beyond(nothing)):
        assert said == readings.NOT_RECORDED
    assert chance.equal(nothing.points) == readings.NOT_RECORDED
