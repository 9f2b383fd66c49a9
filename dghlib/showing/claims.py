"""The claims of the papers, and whether our records support them: a row per claim, judged by rules, not by hand.

A claim says that images of one kind are better than those of another by a number of points of top-1, or at most a
margin worse. It is judged for every network that has records of both, by the mean of the differences of runs with the
same seed. It *holds* if it is true on all networks, *holds in part* if it is true on some, *does not hold* if it is
true on none, and is *not tried* without records. The paper's numbers are the range over its own networks. On some of
the networks a claim is also *shown*: the one-sided 95 % bound of the mean (Student's t) supports it, which needs
several seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy.stats import t

from dghlib.experiments.experiment import FLOAT, REAL
from dghlib.experiments.run import Record
from dghlib.plans.papers import PARTS
from dghlib.showing.paper_tables import RowOf, intraq_part_of, labelled, parts_of, settings_of
from dghlib.showing.readings import between, span
from dghlib.showing.tables import PAPER_ROWS, TITLES, paper_table, short_name

CONFIDENCE = 0.95  # of claims that are shown
RIVALS = (TITLES["zeroq"], TITLES["intraq"], TITLES["genie_d"])  # of DGH, in its tables
ALL_PARTS = " + ".join(PARTS)


def source_of(record: Record) -> str:
    """Return the name of the source of a record's images."""
    return TITLES[record["inputs"]["images"]["source"]]


def stretched_of(record: Record) -> str:
    """Return the source of a record's images, or the scope of DGH's images without the reward."""
    settings = settings_of(record)
    if record["inputs"]["images"]["source"] == REAL or settings["output_stretching"]:
        return "other"
    return {None: "all together", 1: "each alone"}.get(settings["scope"], "other")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Images `better` reach at least `points` more than each of `worse`; with negative points, at most that much less.

    Attributes:
        where: the paper, and the table or figure.
        says: the claim in a sentence.
        plan: the name of the plan whose records judge it; `bits`, and `quantizer` if it has several, select records.
        row_of: returns the kind of images of a record.
        paper: the table of the paper's numbers, and the setting there; "" if the paper prints only a figure.
    """

    where: str
    says: str
    plan: str
    better: str
    worse: tuple[str, ...]
    bits: str
    points: float
    row_of: RowOf = source_of
    quantizer: str | None = None
    paper: str = ""
    setting: str = ""


DGH, REAL_ROW = TITLES["dgh"], TITLES[REAL]
CLAIMS = (
    Claim(
        where="DGH, Table 2",
        says="With every tensor in 8 bits DGH's images are as good as real images, within 1 point",
        plan="table2", better=DGH, worse=(REAL_ROW,), bits="W8A8", points=-1.0, paper="dgh_table2", setting="W8A8",
    ),
    Claim(
        where="DGH, Table 2",
        says="With every tensor in 8 bits DGH's images are 10 points or more ahead of ZeroQ's images",
        plan="table2", better=DGH, worse=(TITLES["zeroq"],), bits="W8A8", points=10.0,
        paper="dgh_table2", setting="W8A8",
    ),
    Claim(
        where="DGH, Table 1",
        says="With everything in 4 bits DGH's images are ahead of those of every rival",
        plan="table1", better=DGH, worse=RIVALS, bits="W4A4", points=0.0, paper="dgh_table1", setting="W4A4",
    ),
    Claim(
        where="DGH, Table 1",
        says="With 2-bit weights DGH's images are ahead of those of every rival",
        plan="table1", better=DGH, worse=RIVALS, bits="W2A4", points=0.0, paper="dgh_table1", setting="W2A4",
    ),
    Claim(
        where="DGH, Table 1",
        says="With everything in 4 bits DGH's images are as good as real images, within 1 point",
        plan="table1", better=DGH, worse=(REAL_ROW,), bits="W4A4", points=-1.0, paper="dgh_table1", setting="W4A4",
    ),
    Claim(
        where="DGH, Table 5",
        says="With the ends spared DGH's images are at most 1 point behind those of every rival",
        plan="table5", better=DGH, worse=RIVALS, bits="W4A4", points=-1.0, paper="dgh_table5", setting="W4A4",
    ),
    Claim(
        where="DGH, Table 4",
        says="The three parts together gain 10 points or more",
        plan="table4", row_of=parts_of, better=ALL_PARTS, worse=("none",), bits="W4A4", points=10.0,
        paper="dgh_table4", setting="W4A4",
    ),
    Claim(
        where="DGH, Table 4",
        says="Output stretching adds to the other two parts",
        plan="table4", row_of=parts_of, better=ALL_PARTS, worse=("scope + preprocessing",), bits="W4A4", points=0.0,
        paper="dgh_table4", setting="W4A4",
    ),
    Claim(
        where="DGH, Table 4",
        says="Preprocessing adds to the other two parts",
        plan="table4", row_of=parts_of, better=ALL_PARTS, worse=("scope + stretching",), bits="W4A4", points=0.0,
        paper="dgh_table4", setting="W4A4",
    ),
    Claim(
        where="DGH, Figure 1",
        says="Matching all images together is better than matching each alone",
        plan="figure1", row_of=stretched_of, better="all together", worse=("each alone",), bits="W3A8", points=0.0,
    ),
    Claim(
        where="GENIE, Table A1",
        says="GENIE's images are better than ZeroQ's images, at every number of images",
        plan="samples", better=TITLES["genie_d"], worse=(TITLES["zeroq"],), bits="W2A4", points=0.0,
        paper="genie_tableA1",
    ),
    Claim(
        where="IntraQ, supplement",
        says="Rotating crops as well changes little: at most 1 point",
        plan="intraq_parts", row_of=intraq_part_of, better="LOR with turns (L+R+F)", worse=("all three",), bits="W4A4",
        points=-1.0,
    ),
    Claim(
        where="IntraQ",
        says="Leaving out local object reinforcement costs accuracy",
        plan="intraq_parts", row_of=intraq_part_of, better="all three", worse=("without LOR",), bits="W4A4", points=0.0,
    ),
    Claim(
        where="GenQ, Table 2",
        says="Images of a diffusion model are better than GENIE's images for GENIE-M with 2-bit weights",
        plan="genq_table2", quantizer="genie_m", better=TITLES["genq"], worse=(TITLES["genie_d"],), bits="W2A4",
        points=0.0, paper="genq_table2", setting="GENIE-M W2A4",
    ),
    Claim(
        where="GenQ, Table 2",
        says="Images of a diffusion model are as good as real images there, within 1 point",
        plan="genq_table2", quantizer="genie_m", better=TITLES["genq"], worse=(REAL_ROW,), bits="W2A4", points=-1.0,
        paper="genq_table2", setting="GENIE-M W2A4",
    ),
)  # fmt: skip
PLANS = tuple(dict.fromkeys(claim.plan for claim in CLAIMS))


def table(records: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """Return a row for every claim: the paper's numbers, our numbers, and the verdict.

    Args:
        records: those of each of `PLANS`, by its name.
    """
    return pd.DataFrame([_row(claim, records.get(claim.plan, ())) for claim in CLAIMS]).set_index("claim")


def _row(claim: Claim, records: Sequence[Record]) -> dict[str, object]:
    found = differences(claim, records)
    return {
        "claim": f"{claim.says} ({claim.where}, {claim.bits})",
        "theirs": span(_printed(claim)),
        "ours": span(found["points"]),
        "networks": len(found),
        "runs": _counts(found["runs"]),
        "±": between(found["reach"].dropna()) if found["reach"].notna().any() else "",
        "holds on": _named(found.index[found["points"] >= claim.points]),
        "shown on": _named(found.index[found["points"] - found["reach"] >= claim.points]),
        "verdict": verdict(claim, found),
    }


def _named(networks: Iterable[str]) -> str:
    return ", ".join(short_name(name) for name in networks) or "none"


def verdict(claim: Claim, found: pd.DataFrame) -> str:
    """Return the verdict on a claim from its `differences`."""
    if found.empty:
        return "not tried"
    share = (found["points"] >= claim.points).mean()
    return "holds" if share == 1 else "holds in part" if share > 0 else "does not hold"


def differences(claim: Claim, records: Sequence[Record]) -> pd.DataFrame:
    """Return, by network, by how many points `better` is ahead of the best of `worse`, and the number of pairs.

    `reach` is the distance of the one-sided bound below the mean, NaN for a single pair.
    """
    nothing = pd.DataFrame({"points": [], "runs": [], "reach": []})
    quantized = [record for record in records if "images" in record["inputs"]]
    if not quantized:
        return nothing
    rows = labelled(quantized, claim.row_of)
    rows = rows[(rows.bits == claim.bits) & (rows.quantizer == (claim.quantizer or rows.quantizer))]
    top1 = rows.groupby(["model", "num_images", "seed", "row"]).top1.mean().unstack("row")
    if claim.better not in top1 or not set(claim.worse) <= set(top1.columns):
        return nothing
    ahead = (top1[claim.better] - top1[list(claim.worse)].max(axis=1, skipna=False)).dropna()
    found = ahead.groupby("model").agg(points="mean", runs="count", spread="std")
    found["reach"] = t.ppf(CONFIDENCE, found.runs - 1) * found.pop("spread") / found.runs**0.5
    return found


def beside_the_best_rival(records: Mapping[str, Sequence[Record]], tables: Sequence[str]) -> pd.DataFrame:
    """Return by how many points DGH is ahead of the best rival and of real images: settings by network.

    A cell is the mean over seeds, first of DGH against the best rival of each seed, then of DGH against real images.
    """
    cells = {}
    for plan in tables:
        for bits in _widths(records[plan]):
            rivals, real = (differences(_ahead(plan, bits, worse), records[plan]) for worse in (RIVALS, (REAL_ROW,)))
            for model in real.index.intersection(rivals.index):
                pair = f"{rivals.points[model]:+.1f} / {real.points[model]:+.1f}"
                cells[short_name(model), plan.replace("table", "Table "), bits] = pair
    if not cells:
        return pd.DataFrame({"no records": ["of these settings and versions"]}, index=[""])
    table = pd.Series(cells).unstack([1, 2]).fillna("")
    return table.rename_axis(index="best rival / real images", columns=["", ""])


def _ahead(plan: str, bits: str, worse: tuple[str, ...]) -> Claim:
    """Return the claim that DGH's images are ahead."""
    return Claim(where="", says="", plan=plan, better=DGH, worse=worse, bits=bits, points=0.0)


def _widths(records: Sequence[Record]) -> list[str]:
    configs = [record["inputs"]["quantizer"].get("config") for record in records]
    return list(dict.fromkeys(f"W{each['weight_bits']}A{each['activation_bits']}" for each in configs if each))


def _printed(claim: Claim) -> pd.Series:
    """Return the paper's own differences, one per network."""
    if not claim.paper:
        return pd.Series(dtype=float)
    rows = paper_table(claim.paper)
    rows = rows[rows.setting == claim.setting] if claim.setting else rows[rows.setting != FLOAT]
    titles = [TITLES[PAPER_ROWS[name]] if name in PAPER_ROWS else name for name in rows.method]
    numbers = rows.assign(row=titles).pivot_table("mean", ["network", "setting"], "row")
    worse = [name for name in claim.worse if name in numbers]
    if claim.better not in numbers or not worse:
        return pd.Series(dtype=float)
    return (numbers[claim.better] - numbers[worse].max(axis=1)).dropna()


def _counts(runs: pd.Series) -> str:
    if not len(runs):
        return ""
    low, high = int(runs.min()), int(runs.max())
    return str(low) if low == high else f"{low} to {high}"
