"""Pages of the papers' tables and figures: rows are named after what varies, and features are separated by set."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dghlib.experiments import run
from dghlib.experiments.experiment import FLOAT, Experiment, Run, width_of
from dghlib.experiments.profiles import first_models
from dghlib.plans import fine_tuned, papers, transformers
from dghlib.plans.catalogue import PLANS
from dghlib.showing import detections, paper_figures, paper_tables, plan_tables, quantizer_tables, tables

ONE: dict[str, Any] = {"seeds": 2, "models": ["shapes_residual"]}
OF_DETECTORS = ("table3", "folded_head", "boxes", "head_outputs")


def made_up(experiments: Sequence[Run]) -> list[run.Record]:
    """Return a record for each experiment; top-1 counts them, so that every number in a table has one source."""
    return [
        {"inputs": run.inputs_of(experiment), "outputs": {"top1": float(number)}}
        for number, experiment in enumerate(experiments)
    ]


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_has_no_duplicates_and_is_reproducible(name: str) -> None:
    profile = "shapes_detection" if name in OF_DETECTORS else "shapes"
    experiments = PLANS[name](profile, "quick", seeds=2)
    assert len(set(experiments)) == len(experiments)
    assert experiments == PLANS[name](profile, "quick", seeds=2)


@pytest.mark.parametrize("name", [name for name in PLANS if name not in OF_DETECTORS])
def test_impossible_options_of_a_plan_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="seeds must be at least 0, got -1"):
        PLANS[name]("shapes", "smoke", seeds=-1)
    with pytest.raises(ValueError, match=r"model must be one of 'shapes_residual', .*, got 'cifar10_resnet20'"):
        PLANS[name]("shapes", "smoke", models=["cifar10_resnet20"])


def test_numbers_of_networks_below_zero_are_refused() -> None:
    assert first_models("shapes", 2) == ["shapes_residual", "shapes_bottleneck"]
    with pytest.raises(ValueError, match="networks must be at least 0, got -1"):
        first_models("shapes", -1)


@pytest.mark.parametrize("name", PLANS)
def test_every_run_of_a_plan_has_its_own_title(name: str) -> None:
    planned = PLANS[name]("shapes_detection" if name in OF_DETECTORS else "shapes", "smoke")
    assert len({run.title for run in planned}) == len(planned)


def test_table4_has_a_row_for_every_choice_of_parts() -> None:
    experiments = papers.table4("shapes", "quick", **(ONE | {"seeds": 1}))
    table = paper_tables.table4(made_up(experiments))
    assert len(table) == 9 + len(tables.FEET)
    assert table.loc[("seeds", "", ""), ("residual", "W4A4")] == "1"
    assert table.loc[("quantized", "", ""), ("residual", "W4A4")] == "all but image, addends, averages"
    assert table.loc[("✓", "✓", "✓"), ("paper: ResNet-18", "W4A4")] == "65.64"
    assert tables.unmerged(table).data.count("✓") == 3 * 4  # each part is on in 4 of the 8 rows
    for place, experiment in enumerate(experiments[1:], start=1):
        dgh = experiment.source_config
        on = (dgh.scope is None, dgh.preprocessing, dgh.output_stretching)
        width = f"W{experiment.quantizer_config.weight_bits}A4"
        assert table.loc[tuple("✓" if part else "" for part in on), ("residual", width)] == f"{place}.00"


def test_rows_hold_means_over_seeds() -> None:
    experiments = papers.intraq_parts("shapes", "quick", **ONE)
    records = made_up(experiments)
    table = paper_tables.intraq_parts(records)
    without = [k for k, e in enumerate(experiments) if e.quantizer != FLOAT and e.source_config.crop_area == 1]
    assert table.loc["without LOR", ("residual", "W4A4")].startswith(f"{sum(without) / 2:.2f} ± ")
    assert table.loc["Float", ("residual", "W4A4")] == "0.00"


def test_rows_are_makers_of_images_and_columns_are_networks() -> None:
    names = ["shapes_residual", "shapes_inverted"]
    wanted: dict[str, Any] = {"models": names, "sources": ["dgh"], "bits": ["W2A4", "W4A4"]}
    experiments = papers.transfer("shapes", "quick", seeds=1, **wanted)
    table = paper_tables.transfers(made_up(experiments))
    for place, experiment in enumerate(experiments[2:], start=2):
        row, column = (name.removeprefix("shapes_") for name in (experiment.maker, experiment.model))
        assert table.loc[("DGH", row, width_of(experiment.quantizer_config)), column] == f"{place}.00"
    assert "nan" not in paper_tables.transfers(made_up(experiments)[:-1]).to_string().lower()  # a run without a record
    assert "65.72" in paper_tables.paper_transfers().to_string()


def test_images_of_a_transformer_are_in_the_table_of_transfers() -> None:
    names = ["shapes_residual", "shapes_inverted"]
    experiments = papers.transfer("shapes", "quick", seeds=1, models=names, sources=["psaq_vit", "dgh"])
    made = [(each.source, each.images_of, each.model) for each in experiments[len(names) :]]
    assert [each for each in made if each[0] == "psaq_vit"] == [
        ("psaq_vit", "shapes_transformer", name) for name in names
    ]
    assert "PSAQ-ViT" in paper_tables.transfers(made_up(experiments)).to_string()


def test_genqs_images_for_transformers_are_filtered_by_patches() -> None:
    drawn = [
        each for each in transformers.genq_table4("shapes_transformers", "quick", seeds=1) if each.source == "genq"
    ]
    assert {each.source_config.second_stage for each in drawn} == {"patch_similarity"}
    assert len(drawn) == len(transformers.WIDTHS) * len(transformers.QUANTIZERS)
    public = transformers.genq_table4("cifar10_transformers", "quick", seeds=1)
    assert all(each.source != "genq" for each in public)  # no pipeline of its data ships with the package


def test_numbers_that_a_paper_cites_are_marked() -> None:
    printed = paper_tables.printed("genq_table2")
    assert printed.loc[("BRECQ W2A4", "ZeroQ"), "ResNet-50"] == "64.16 ‡"
    assert printed.loc[("BRECQ W2A4", "ZeroQ"), "MNasNet"] == "13.83"
    assert printed.loc[("BRECQ W4A4", "KW"), "MobileNet-b"] == "61.94 ‡"


def test_amounts_and_printed_numbers() -> None:
    table = paper_tables.by_amount(made_up(papers.samples("shapes", "quick", bits=["W2A4", "W4A4"], **ONE)))
    sizes = (16, 32, 64, 128)
    assert list(table.index.droplevel("network")) == [(f"W{n}A4", size) for n in (2, 4) for size in sizes]
    assert paper_tables.paper_amounts("genie_tableA1").loc[1024, ("MBV2", "GENIE")] == "49.89"
    assert paper_tables.printed("genq_table1").loc["GENIE", ("batch-norm distance", "MBV2")] == "1.03 ± 0.296"


def test_methods_by_amount_show_their_cost() -> None:
    experiments = fine_tuned.genie_table_a2("shapes", "quick", **(ONE | {"seeds": 1}))
    records = made_up(experiments)
    for record in records:
        record["outputs"] |= {"generation_seconds": 10.0, "quantization_seconds": record["outputs"]["top1"]}
    table = paper_tables.methods_by_amount(records)
    assert list(table.index.get_level_values("images")) == [32, 64, 128]
    assert list(table.columns) == ["GENIE-M", "AIT"]
    place = next(
        k for k, each in enumerate(experiments) if each.quantizer == "ait" and each.source_config.num_images == 64
    )
    assert table.loc[("residual", "W4A4", "GENIE", 64), "AIT"] == f"{place}.00 ({10 + place} s)"


def test_plans_of_fine_tuning_never_mix_protocols() -> None:
    """One table has first and last layers at 8 bits and learned steps, the other equal layers and min-max grids."""
    for name, policy, searched in (("genq_table3", "academic", True), ("intraq_table3", "full", False)):
        configs = [each.quantizer_config for each in PLANS[name]("shapes", "quick", seeds=1) if each.quantizer != FLOAT]
        assert {config.bits for config in configs} == {policy}
        assert {config.weight_search != "min_max" for config in configs} == {searched}


def test_generators_trained_with_the_student_are_rows_without_images() -> None:
    experiments = fine_tuned.trained_together("shapes", "quick", models=["shapes_residual"], seeds=2)
    of_table = PLANS["intraq_table3"]("shapes", "quick", seeds=1)[-1].quantizer_config
    quantized = experiments[1:]
    assert [each.seed for each in quantized] == [0, 0, 0, 1, 1, 1]
    assert quantized[3].title == "shapes_residual gdfq W3A3 full, no images, seed 1"
    for each in quantized:
        config = each.quantizer_config
        assert (config.bits, config.placement, config.steps) == (of_table.bits, of_table.placement, 400)
    table = quantizer_tables.quantizers(made_up(experiments))
    assert list(table.index.get_level_values("method")) == ["GDFQ", "Qimera, fine-tuned", "AdaDFQ", "", ""]
    assert list(table.columns) == [("residual", "No images")]
    assert table.loc[("seeds", "", "")].tolist() == ["2"]


def test_the_saved_numbers_of_a_table_have_columns_of_their_settings(tmp_path: Path) -> None:
    records = made_up(papers.intraq_parts("shapes", "quick", **ONE))
    tables.save_csv(records, str(tmp_path / "t.csv"))
    saved = pd.read_csv(tmp_path / "t.csv").set_index("settings")
    assert len(saved) == 1 + len(papers.INTRAQ_PARTS)  # and the float network
    tops = [
        each["outputs"]["top1"]
        for each in records
        if each["inputs"].get("images", {}).get("config", {}).get("flip") is False
    ]
    assert saved.loc["flip = False", "mean"] == sum(tops[::2]) / 2
    assert saved.loc["flip = False", "seeds"] == 2
    tables.save_csv([], str(tmp_path / "none.csv"))
    assert "no records" in (tmp_path / "none.csv").read_text()


def test_curves_show_every_record() -> None:
    drawn: dict[str, Callable[..., Figure]] = {
        "figure5": paper_figures.scope_curves,
        "figure6": partial(paper_figures.width_curves, vary="activations"),
        "figure7": partial(paper_figures.width_curves, vary="weights"),
        "samples": paper_figures.amount_curves,
        "step_sizes": paper_figures.step_size_curves,
        "genq_filters": paper_figures.filter_curves,
    }
    for name, draw in drawn.items():
        records = made_up(PLANS[name]("shapes", "quick", **ONE))
        (axis,) = draw(records).axes
        shown = [float(y) for line in axis.lines for y in np.asarray(line.get_ydata())]
        top1 = tables.frame(records).groupby(["source", "bits", "quantizer"]).top1
        draw([])  # an empty figure
        assert min(shown) == top1.get_group((FLOAT, FLOAT, FLOAT)).mean(), name
        assert len(set(shown)) > 5, name


def test_a_part_of_a_plan_can_be_chosen() -> None:
    every = papers.figure5("shapes", "quick", **ONE)
    some = papers.figure5("shapes", "quick", sizes=[4, 128], **ONE)
    scopes = [each.source_config.scope for each in some if each.source == "dgh"]
    assert set(some) < set(every)
    assert set(scopes) == {4, None}  # 128 are all
    rows = ["all three", "without MDC"]
    chosen = made_up(papers.intraq_parts("shapes", "quick", rows=rows, **ONE))[1:]
    assert sorted({paper_tables.intraq_part_of(record) for record in chosen}) == rows


def test_options_of_several_sources_have_rows_of_their_own() -> None:
    made = made_up(PLANS["statistics_options"]("shapes", "quick", **(ONE | {"seeds": 1})))
    names = ("GENIE", "DGH")
    changes = ("", ", statistics_distance = gaussian", ", statistics_slack = 0.9", ", low_pass = 16.0")
    rows = [name + changed for name in names for changed in changes]
    table = plan_tables.table_of("statistics_options", made)
    assert list(table.index[:10]) == [*rows, "Real data", "Float"]
    assert set(table.columns) == {("residual", "W4A4"), ("residual", "W2A4")}
    assert table.iloc[:9].nunique().tolist() == [9, 9]


def test_filters_discard_the_share_on_the_page() -> None:
    records = made_up(papers.genq_filters("shapes", "quick", **(ONE | {"seeds": 1})))[1:]
    shown = [(paper_figures.filter_of(record), paper_figures.discarded_of(record)) for record in records]
    tenths = [10, 30, 50, 70, 90]
    filters = [(name, share) for name in ("energy", "batch-norm sensitivity") for share in tenths]
    assert shown == [("no filter", 0), *filters]


def test_widths_of_a_network_stay_together_if_some_are_missing() -> None:
    found = [("a", "W2A4"), ("b", "W2A4"), (f"{tables.PAPER}a", "W4A4"), ("b", "W4A4"), ("a", "W4A4"), ("a", "W2A4")]
    wanted = [("a", "W2A4"), ("a", "W4A4"), ("b", "W2A4"), ("b", "W4A4"), (f"{tables.PAPER}a", "W4A4")]
    assert tables.in_order(found) == wanted


@pytest.mark.parametrize("name", PLANS)
def test_records_of_the_repository_fill_the_table_of_their_plan(name: str) -> None:
    profile = "shapes_detection" if name in OF_DETECTORS else "shapes"
    assert len(plan_tables.table_of(name, run.published(PLANS[name](profile, "quick")))) > 0


def test_quantizers_of_the_same_width_have_separate_columns() -> None:
    experiments = PLANS["table3"]("coco_lite", "quick", seeds=2, models=["coco_fastestdet"])
    records = [record | {"outputs": {"map": record["outputs"]["top1"]}} for record in made_up(experiments)]
    table = detections.by_quantizer(records)
    assert list(table.columns) == [
        ("fastestdet", setting)
        for setting in ("HPTQ W8A8", "HPTQ W4A8", "AdaRound W4A8", "AdaRound W4A4", "BRECQ W4A8", "BRECQ W4A4")
    ]
    assert list(table.index) == ["Gaussian noise", "ZeroQ", "GENIE", "DGH", "Real data", "Float", *tables.FEET]
    assert set(table.loc["Float"]) == {"0.00"}
    of_brecq = [
        number
        for number, experiment in enumerate(experiments)
        if experiment.quantizer == "brecq" and width_of(experiment.quantizer_config) == "W4A8"
        if isinstance(experiment, Experiment) and experiment.source == "dgh"
    ]
    assert table.loc["DGH", ("fastestdet", "BRECQ W4A8")].startswith(f"{sum(of_brecq) / 2:.2f} ± ")
    assert "no records" in detections.by_quantizer([]).columns[0]
