"""Changes by chance are told from runs of the same inputs."""

from typing import Any

import pytest

from dghlib.showing import chance


def _row(seed: int, top1: float, differs: str = "", recorded: float | None = None) -> dict[str, Any]:
    run = {"network": "shapes_residual", "method": "brecq", "bits": "W2A4", "seed": seed}
    return run | {"differs": differs, "top1": top1, "recorded": recorded}


RECORD = {
    "outputs": [
        _row(0, 80.0, recorded=80.5), _row(0, 79.0, "2 threads"), _row(0, 80.2, "last bits"),
        _row(1, 82.0), _row(1, 82.3, "2 threads"), _row(1, 82.0, "last bits"),
    ]
}  # fmt: skip


def test_each_repetition_is_compared_with_the_run_of_its_seed() -> None:
    points = chance.changes(RECORD).groupby("differs").points.apply(sorted)
    assert points["2 threads"] == pytest.approx([-1.0, 0.3])
    assert points["last bits"] == pytest.approx([0.0, 0.2])
    assert points[chance.RECORDED] == pytest.approx([0.5])


def test_the_table_has_seeds_beside_all_other_chance() -> None:
    (row,) = chance.table(RECORD).reset_index().to_dict("records")
    assert (row["network"], row["method"], row["seeds"], row["seeds ±"]) == ("residual", "BRECQ", 2, "1.41")
    assert (row["2 threads"], row["last bits"]) == ("0.65 (1.00)", "0.10 (0.20)")
    assert row[chance.RECORDED] == "0.50 (0.50)"
    assert "no records" in chance.table(None).columns
