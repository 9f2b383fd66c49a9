"""Every plan by its name on the command line."""

from collections.abc import Callable, Sequence

from dghlib.experiments.experiment import Run
from dghlib.plans import methods, observations, papers, quantized

PLANS: dict[str, Callable[..., Sequence[Run]]] = {
    "table1": papers.table1,
    "table2": methods.table2,
    "table3": methods.table3,
    "table4": papers.table4,
    "table5": papers.table5,
    "figure1": papers.figure1,
    "figure2": observations.figure2,
    "figure3": observations.figure3,
    "figure4": observations.figure4,
    "figure5": papers.figure5,
    "figure6": papers.figure6,
    "figure7": papers.figure7,
    "head_outputs": observations.head_outputs,
    "figure8": observations.figure8,
    "figure9": observations.figure9,
    "samples": papers.samples,
    "step_sizes": papers.step_sizes,
    "genie_figureA5": observations.genie_figure_a5,
    "intraq_figure1": observations.intraq_figure1,
    "intraq_amounts": papers.intraq_amounts,
    "intraq_parts": papers.intraq_parts,
    "genq_table2": papers.genq_table2,
    "genq_amounts": papers.genq_amounts,
    "genq_filters": papers.genq_filters,
    "genq_classes": observations.genq_classes,
    "transfer": papers.transfer,
    "dgh_settings": methods.dgh_settings,
    "output_weights": methods.output_weights,
    "output_shares": methods.output_shares,
    "quantizers": methods.quantizers,
    "placements": methods.placements,
    "no_images": methods.no_images,
    "compensation": methods.compensation,
    "sources": methods.sources,
    "image_costs": observations.image_costs,
    "gallery": observations.gallery,
    "layers": quantized.layers,
    "boxes": quantized.boxes,
    "files": quantized.files,
    "onnxruntime": observations.onnxruntime,
}
