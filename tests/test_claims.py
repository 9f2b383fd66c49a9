"""Claims are judged by their rules, on hand-made records."""

from typing import Any

import pytest

from dghlib.showing import claims, quantizer_tables
from dghlib.showing.claims import DGH, REAL_ROW, Claim
from dghlib.showing.readings import distances, gains, span


def record(
    source: str, top1: float, *, model: str = "shapes_residual", seed: int = 0, method: str = "hptq", **more: Any
) -> dict[str, Any]:
    config = {"weight_bits": 8, "activation_bits": 8, "bits": "full"} | more
    quantizer = {"method": method, "config": config}
    return {
        "inputs": {
            "profile": "shapes",
            "model": {"name": model},
            "test_images": 100,
            "quantizer": quantizer,
            "images": {"source": source, "config": {"seed": seed, "num_images": 16}},
        },
        "outputs": {"top1": top1},
    }


def level(points: float, *worse: str) -> Claim:
    return Claim(where="", says="", plan="table2", better=DGH, worse=worse or (REAL_ROW,), bits="W8A8", points=points)


def test_a_difference_is_between_runs_with_the_same_seed() -> None:
    records = [record("dgh", 80.0), record("real", 81.0), record("dgh", 60.0, seed=1), record("real", 60.5, seed=1)]
    found = claims.differences(level(-1.0), [*records, record("real", 10.0, seed=2)])
    assert found.points["shapes_residual"] == pytest.approx(-0.75)
    assert found.runs["shapes_residual"] == 2


def test_a_difference_is_a_mean_over_seeds() -> None:
    ours = [record("dgh", 60.0 + points, seed=seed) for seed, points in enumerate((1, 2, 6))]
    theirs = [record("real", 60.0, seed=seed) for seed in range(3)]
    assert claims.differences(level(0.0), ours + theirs).points.tolist() == [3.0]


def test_the_best_rival_counts_and_all_rivals_are_needed() -> None:
    rivals = [record("zeroq", 10.0), record("genie_d", 79.0)]
    named = (claims.TITLES["zeroq"], claims.TITLES["genie_d"])
    assert claims.differences(level(0.0, *named), [record("dgh", 80.0), *rivals]).points.tolist() == [1.0]
    assert claims.differences(level(0.0, *named), [record("dgh", 80.0), rivals[0]]).empty


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (80.0, 70.0, "holds"),
        (79.5, 69.5, "holds"),
        (80.0, 68.0, "holds in part"),
        (78.0, 68.0, "does not hold"),
        (None, None, "not tried"),
    ],
)
def test_verdicts_depend_on_all_networks(here: float | None, there: float | None, expected: str) -> None:
    records = [record("real", 80.5), record("real", 70.5, model="shapes_inverted")]
    records += [
        record("dgh", top1, model=name)
        for name, top1 in (("shapes_residual", here), ("shapes_inverted", there))
        if top1
    ]
    claim = level(-1.0)
    assert claims.verdict(claim, claims.differences(claim, records)) == expected


def test_every_claim_of_a_printed_table_has_the_papers_numbers() -> None:
    table = claims.table({})
    assert set(table.verdict) == {"not tried"}
    for claim in claims.CLAIMS:
        assert claim.paper == "" or span(claims._printed(claim)) != "", claim.says


def test_a_cell_has_the_differences_from_the_best_rival_and_from_real_images() -> None:
    reached = {"zeroq": 1.0, "intraq": 70.0, "genie_d": 60.0, "dgh": 75.0, "real": 76.0}
    records = [record(source, top1) for source, top1 in reached.items()]
    table = claims.beside_the_best_rival({"table2": records}, ["table2"])
    assert table.to_numpy().tolist() == [["+5.0 / -1.0"]]


def test_distances_span_the_networks() -> None:
    records = [record("dgh", 80.0), record("real", 81.0), record("zeroq", 10.0)]
    records += [record("dgh", 71.0, model="shapes_inverted"), record("real", 70.5, model="shapes_inverted")]
    table = distances({"shapes": records})
    assert table.columns.tolist() == [("shapes", "W8A8")]
    assert table["shapes", "W8A8"].to_dict() == {"ZeroQ": "-71.0", "DGH": "-1.0 to +0.5"}
    assert distances({"shapes": records}, "noise").to_numpy().tolist() == [["of these settings and versions"]]


def test_distances_can_separate_quantizers() -> None:
    table = distances({"shapes": [record("dgh", 80.0), record("real", 81.0)]}, by_quantizer=True)
    assert table.columns.tolist() == [("shapes", "HPTQ", "W8A8")]


def test_distances_of_many_columns_are_rows() -> None:
    """So that no column lies beyond the edge of a page."""
    sets = {str(number): [record("dgh", 80.0), record("real", 81.0)] for number in range(10)}
    assert distances(sets).columns.tolist() == ["DGH"]
    assert distances(dict(list(sets.items())[:9])).index.tolist() == ["DGH"]


def test_gains_compare_quantizers_with_the_same_images() -> None:
    """Also if they quantize other tensors, but not with other images."""
    records = [
        record("real", 80.0, method="genie_m", placement="genie"),
        record("real", 81.5, method="lsq", placement="relu_only"),
        record("dgh", 70.0, method="genie_m", placement="genie"),
        record("dgh", 69.0, method="lsq", placement="relu_only"),
        record("noise", 10.0, method="lsq", placement="relu_only"),
    ]
    table = gains({"shapes": records}, ["genq_qat", "lsq"], "genie_m")
    assert table.to_dict("index") == {("shapes", "LSQ", "W8A8"): {"DGH": "-1.0", "Real data": "+1.5"}}


def test_pages_without_records_say_so() -> None:
    for table in (
        quantizer_tables.costs([]),
        quantizer_tables.quantizers([]),
        distances({"shapes": []}),
        gains({"shapes": []}, ["lsq"], "genie_m"),
    ):
        assert table.to_numpy().tolist() == [["of these settings and versions"]]


def test_a_claim_is_shown_where_the_bound_of_the_mean_supports_it() -> None:
    ahead = [2.0, 3.0, 4.0]
    records = [record("dgh", 80.0 + points, seed=seed) for seed, points in enumerate(ahead)]
    records += [record("real", 80.0, seed=seed) for seed in range(3)]
    reach = 2.919985580355516 / 3**0.5  # the 95 % quantile at 2 degrees of freedom, a deviation of 1
    assert claims.differences(level(0.0), records).reach.tolist() == [pytest.approx(reach)]
    for points, shown in ((3 - reach - 0.01, "residual"), (3 - reach + 0.01, "none")):
        row = claims._row(level(points), records)
        assert (row["holds on"], row["shown on"], row["±"]) == ("residual", shown, f"{reach:.1f}")
    single = claims._row(level(0.0), [records[0], records[3]])
    assert (single["holds on"], single["shown on"], single["±"]) == ("residual", "none", "")
