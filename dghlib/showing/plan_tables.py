"""The table of the records of a plan, which `dgh run` prints."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from dghlib.experiments.run import Record
from dghlib.showing import deployment, detections, image_figures, paper_tables, quantizer_tables, sources, tables

# For all plans whose table is not `tables.accuracy`.
_TABLES: dict[str, Callable[..., Any]] = {
    "quantizers": quantizer_tables.quantizers,
    "placements": quantizer_tables.placements,
    "like_for_like": quantizer_tables.quantizers,
    "no_images": quantizer_tables.ways,
    "compensation": quantizer_tables.ways,
    "dgh_settings": tables.settings,
    "output_weights": tables.settings,
    "output_shares": tables.settings,
    "statistics_options": paper_tables.by_settings,
    "figure1": tables.settings,
    "figure5": tables.settings,
    "table4": paper_tables.table4,
    "table4_in_full": paper_tables.table4,
    "samples": paper_tables.by_amount,
    "qimera_amounts": paper_tables.by_amount,
    "step_sizes": paper_tables.step_sizes,
    "intraq_amounts": paper_tables.by_amount,
    "intraq_parts": paper_tables.intraq_parts,
    "genq_table2": quantizer_tables.quantizers,
    "qimera_table2": quantizer_tables.quantizers,
    "genq_table3": quantizer_tables.quantizers,
    "genq_table4": quantizer_tables.quantizers,
    "every_tensor": quantizer_tables.quantizers,
    "without_batch_norm": paper_tables.statistics,
    "transformer_layers": partial(tables.observed, name="noise"),
    "genq_figure4": paper_tables.methods_by_amount,
    "genie_tableA2": paper_tables.methods_by_amount,
    "intraq_table3": quantizer_tables.quantizers,
    "trained_together": quantizer_tables.quantizers,
    "genq_amounts": paper_tables.by_amount,
    "genq_filters": tables.settings,
    "genq_classes": paper_tables.filtered_classes,
    "transfer": paper_tables.transfers,
    "table3": detections.by_quantizer,
    "folded_head": detections.by_quantizer,
    "figure2": image_figures.spreads,
    "figure3": image_figures.nearer,
    "figure4": image_figures.output_ends,
    "head_outputs": detections.head_outputs,
    "figure8": image_figures.described,
    "figure9": image_figures.described,
    "gallery": image_figures.described,
    "intraq_figure1": image_figures.spreads,
    "genie_figureA5": partial(tables.observed, name="distances"),
    "image_costs": sources.cost,
    "layers": partial(tables.observed, name="noise"),
    "boxes": partial(tables.observed, name="boxes"),
    "files": deployment.files,
    "onnxruntime": deployment.onnxruntime_alone,
}


def table_of(plan: str, records: Sequence[Record]) -> pd.DataFrame:
    """Return the table of a plan, a key of `catalogue.PLANS`, from its records; without records, a note."""
    if not records:
        return tables.nothing()
    return _TABLES.get(plan, tables.accuracy)(records)
