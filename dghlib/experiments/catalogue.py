"""Every plan by its name on the command line."""

from collections.abc import Callable, Sequence

from dghlib.experiments import image_plans, paper_plans, plans, quantized_plans
from dghlib.experiments.experiment import Run

PLANS: dict[str, Callable[..., Sequence[Run]]] = {
    "table1": paper_plans.table1,
    "table2": plans.table2,
    "table3": plans.table3,
    "table4": paper_plans.table4,
    "table5": paper_plans.table5,
    "figure1": paper_plans.figure1,
    "figure2": image_plans.figure2,
    "figure3": image_plans.figure3,
    "figure4": image_plans.figure4,
    "figure5": paper_plans.figure5,
    "figure6": paper_plans.figure6,
    "figure7": paper_plans.figure7,
    "figure8": image_plans.figure8,
    "figure9": image_plans.figure9,
    "samples": paper_plans.samples,
    "step_sizes": paper_plans.step_sizes,
    "genie_figureA5": image_plans.genie_figure_a5,
    "intraq_figure1": image_plans.intraq_figure1,
    "intraq_amounts": paper_plans.intraq_amounts,
    "intraq_parts": paper_plans.intraq_parts,
    "genq_table2": paper_plans.genq_table2,
    "genq_amounts": paper_plans.genq_amounts,
    "genq_filters": paper_plans.genq_filters,
    "genq_classes": image_plans.genq_classes,
    "transfer": paper_plans.transfer,
    "dgh_settings": plans.dgh_settings,
    "output_weights": plans.output_weights,
    "quantizers": plans.quantizers,
    "placements": plans.placements,
    "sources": plans.sources,
    "image_costs": image_plans.image_costs,
    "gallery": image_plans.gallery,
    "layers": quantized_plans.layers,
    "boxes": quantized_plans.boxes,
    "files": quantized_plans.files,
    "onnxruntime": image_plans.onnxruntime,
}
