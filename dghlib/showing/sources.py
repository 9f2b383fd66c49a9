"""The cost of calibration images of a network, from the records of observations."""

from collections.abc import Collection, Sequence

import pandas as pd

from dghlib.experiments.experiment import REAL, published
from dghlib.experiments.run import Record
from dghlib.showing.tables import TITLES, nothing, short_name, write_csv

COST = {"passes per image": "{:.0f}", "seconds per image": "{:.3f}", "distance from the statistics": "{:.3g}"}


def cost(
    records: Sequence[Record], *, sources: Collection[str] = tuple(TITLES), save: str | None = None
) -> pd.DataFrame:
    """Return the cost of each source's images and their distance from the statistics, from `image_costs`.

    A pass is a forward and a backward pass through the network. The distance is that of Eq. 4 of the DGH paper, over
    the whole set, as a mean over channels and layers. Numbers are means over repetitions. With `save`, a name, they are
    written to NAME.csv.
    """
    numbers = cost_numbers(records)
    if numbers.empty:
        return nothing()
    chosen = [source for source in TITLES if source in numbers.index and source in sources]
    table = pd.DataFrame({name: numbers.loc[chosen, name].map(form.format) for name, form in COST.items()})
    if REAL in chosen:
        table.loc[REAL, list(COST)[:2]] = ""
    table = table.rename(index=TITLES).rename_axis("calibrated with")
    if save:
        write_csv(f"{save}.csv", table, index=True)
    return table


def cost_numbers(records: Sequence[Record]) -> pd.DataFrame:
    """Return the numbers of `cost`: sources by COST, means over repetitions."""
    rows = []
    for record in records:
        found, sets = record["outputs"]["tables"]["distances"], record["inputs"]["sets"]
        for source, distance in zip(found["images"], found["distance"], strict=True):
            config, seconds = sets[source]["config"], record["outputs"]["generation_seconds"][source]
            rows.append((source, config.get("steps", 0), seconds / config["num_images"], distance))
    return pd.DataFrame(rows, columns=["source", *COST]).groupby("source").mean()


def spent(records: Sequence[Record]) -> pd.DataFrame:
    """Return the cost of the images behind a table of accuracies, so that a comparison shows its costs.

    By source, it has the steps, their share of the authors' steps, and for each network the seconds of a set, median
    over repetitions, on the machines that computed the records.
    """
    rows = []
    for record in records:
        images = record["inputs"].get("images", {})
        if "steps" not in images.get("config", {}):
            continue
        source, config = images["source"], images["config"]
        share = config["steps"] / published(source, config).steps
        maker = short_name(images.get("model", record["inputs"]["model"])["name"])
        rows.append((source, config["steps"], f"{share:.0%}", maker, record["outputs"]["generation_seconds"]))
    if not rows:
        return nothing()
    names = ["source", "steps", "of their authors'", "network", "seconds"]
    seconds = pd.DataFrame(rows, columns=names).groupby(names[:-1], sort=False).seconds.median()
    table = seconds.map("{:.0f} s".format).unstack("network", fill_value="").reset_index(names[1:-2])
    table = table.loc[[source for source in TITLES if source in table.index]]
    return table.rename(index=TITLES).rename_axis(index="images of", columns=None)


def save_lines(records: Sequence[Record]) -> None:
    """Write the row of `cost` of each source to cost_SOURCE.csv, for the pages of the methods."""
    for source in records[0]["inputs"]["sets"] if records else ():
        write_csv(f"cost_{source}.csv", cost(records, sources=[source]))
