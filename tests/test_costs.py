"""Cost estimates by hand: proportions from two records, a plan of shared images."""

from typing import Any

import pytest

from dghlib.experiments import costs, plans
from dghlib.experiments.run import Record


def _record(source: str, method: str, generation: float, quantization: float, **config: Any) -> Record:
    return {
        "inputs": {
            "model": {"name": "shapes_residual"},
            "images": {"source": source, "config": {"num_images": 16, "steps": 3}},
            "quantizer": {"method": method, "config": config},
        },
        "outputs": {"generation_seconds": generation, "quantization_seconds": quantization},
    }


RECORDS = [
    _record("dgh", "hptq", 96.0, 3.2),
    _record("dgh", "hptq", 48.0, 1.6),
    _record("dgh", "brecq", 48.0, 30.0, iterations=10),
]


def test_a_unit_costs_what_the_least_disturbed_record_shows() -> None:
    assert costs.unit_costs(RECORDS) == {
        ("shapes_residual", "dgh"): pytest.approx(1.0),  # 48 seconds for 16 images of 3 steps
        ("shapes_residual", "hptq"): pytest.approx(0.1),
        ("shapes_residual", "brecq"): pytest.approx(3.0),
    }


def test_shared_images_are_paid_once_and_what_is_not_known_is_told() -> None:
    experiments = plans.table2("shapes", "smoke", models=["shapes_residual"], sources=["dgh", "zeroq"], seeds=1)
    table = costs.estimate(experiments, costs.unit_costs(RECORDS))
    assert table.loc["dgh"].to_dict() == {"runs": 1, "hours": pytest.approx(48 / 3600), "unknown": 0}
    assert table.loc["zeroq"].to_dict() == {"runs": 1, "hours": 0, "unknown": 1}
    assert table.loc["hptq"].to_dict() == {"runs": 6, "hours": pytest.approx(6 * 1.6 / 3600), "unknown": 0}
    assert table.loc["all", "runs"] == 8
