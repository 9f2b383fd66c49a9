"""Every plan by its name on the command line."""

from collections.abc import Callable

from dghlib.experiments import paper_plans, plans
from dghlib.experiments.plans import Experiment

PLANS: dict[str, Callable[..., list[Experiment]]] = {
    "table1": paper_plans.table1,
    "table2": plans.table2,
    "table3": plans.table3,
    "table4": paper_plans.table4,
    "table5": paper_plans.table5,
    "figure1": paper_plans.figure1,
    "figure5": paper_plans.figure5,
    "figure6": paper_plans.figure6,
    "figure7": paper_plans.figure7,
    "samples": paper_plans.samples,
    "step_sizes": paper_plans.step_sizes,
    "intraq_amounts": paper_plans.intraq_amounts,
    "intraq_parts": paper_plans.intraq_parts,
    "genq_table2": paper_plans.genq_table2,
    "genq_amounts": paper_plans.genq_amounts,
    "genq_filters": paper_plans.genq_filters,
    "transfer": paper_plans.transfer,
    "dgh_settings": plans.dgh_settings,
    "output_weights": plans.output_weights,
    "quantizers": plans.quantizers,
    "placements": plans.placements,
    "sources": plans.sources,
}
