"""The page of the sweep of architectures."""

from typing import Any

import pytest

from dghlib.showing import architectures


def row(name: str, stages: list[str], failure: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name, "stages": stages, "failure": failure, "in_float": 0, "batch_norm": True} | more


ALL = list(architectures.STAGES)
RECORD = {
    "outputs": [
        row("timm:a", ALL),
        row("timm:b", ALL[:4], "ValueError: 1 % of the outputs differ", in_float=2),
        row("timm:c", ["traced"], "ValueError: no"),
        row("torchvision:d", ALL),
        row("torchvision:e", [], batch_norm=False),
    ]
}


def test_stages_are_counted_by_library_and_together() -> None:
    table = architectures.stages_table(RECORD)
    assert table.loc["timm"].tolist() == [3, 3, 3, 2, 2, 2, 1]
    assert table.loc["torchvision"].tolist() == [2, 1, 1, 1, 1, 1, 1]
    assert table.loc["all"].tolist() == [5, 4, 4, 3, 3, 3, 2]


def test_shares_count_networks_with_batch_norm_and_files_that_ran() -> None:
    assert architectures.percent(RECORD) == pytest.approx({"traced": 100, "ran": 75, "equal": 100 * 2 / 3})
    assert architectures.in_float(RECORD) == 1


def test_failures_are_listed_by_stage() -> None:
    table = architectures.failures_table(RECORD)
    assert table["not"].to_dict() == {"timm:b": "bit for bit", "timm:c": "quantized"}
    assert table.loc["timm:c", "what was said"] == "ValueError: no"
