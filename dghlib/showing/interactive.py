"""Interactive charts beside figures: tooltips with names and numbers, legends that select, zoom and scopes.

A chart is Vega-Lite, made with Altair, and accompanies the same figure of matplotlib. The figure is saved, printed and
read aloud, and is what a page shows without scripts. Notebooks in Jupyter show the chart itself; the pages of the book
draw it with `charts.js`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

MIME = "application/vnd.vegalite.v6+json"
_STAR = "M0,-1L.26,-.36L.95,-.31L.42,.14L.59,.81L0,.44L-.59,.81L-.42,.14L-.95,-.31L-.26,-.36Z"
_TOP1 = "top-1 in %"
_WIDTH, _HEIGHT = 250, 190  # pixels of a part: 2 parts and a legend are as wide as a page


def explorable(figure: Figure, chart: alt.TopLevelMixin | None) -> Figure:
    """Return a figure that notebooks also show as a chart, if they can and there is a chart."""
    if chart is None:
        return figure
    spec = chart.to_dict()
    # Of an instance, because seaborn makes some of the figures.
    figure._repr_mimebundle_ = lambda **_: {MIME: spec}  # type: ignore[attr-defined]
    return figure


def chart_of(figure: Figure) -> dict[str, Any]:
    """Return the Vega-Lite chart of a figure of `explorable`."""
    chart: dict[str, Any] = figure._repr_mimebundle_()[MIME]  # type: ignore[attr-defined]
    return chart


def embedded(chart: Mapping[str, Any]) -> str:
    """Return a chart as HTML, hidden: the book's `charts.js` draws it if scripts run."""
    text = json.dumps(chart, separators=(",", ":")).replace("<", "\\u003c")
    return f'<div class="chart" hidden><script type="application/json">{text}</script></div>'


def curves(means: pd.DataFrame, levels: pd.DataFrame, x: tuple[str, str], *, log: bool) -> alt.TopLevelMixin | None:
    """Return mean top-1 against a setting, a part for each network, or None; a click on the legend selects a curve.

    Args:
        means: columns `model`, `row` (a curve), the setting, `mean`, `spread` (NaN for a single seed) and `seeds`;
            `star` if some points are stars.
        levels: columns `model`, `title` and `top1`: values that do not depend on the setting, as horizontal lines.
        x: the setting's column and name.
        log: whether the setting doubles.
    """
    if means.empty:
        return None
    pick = _pick("row")
    curve = _curve(means, x, log).encode(opacity=alt.when(pick).then(alt.value(1)).otherwise(alt.value(0.1)))
    top1 = alt.Y("mean:Q", title=_TOP1).scale(zero=False)
    layers = [
        curve.mark_area(fillOpacity=0.15).encode(alt.Y("low:Q", title=_TOP1), alt.Y2("high:Q")),
        curve.mark_line().encode(top1),
        curve.mark_point(filled=True, size=50).encode(top1),
    ]
    if "star" in means:
        star = curve.transform_filter(alt.datum.star)
        layers.append(star.mark_point(shape=_STAR, filled=True, size=220).encode(top1, color=alt.value("#d62728")))
    layers.append(_lines(levels))
    models = dict.fromkeys(means.model)
    first, *others = [alt.layer(*(_of(name, each) for each in layers), title=name) for name in models]
    return _finished(alt.concat(first.add_params(pick), *others, columns=2))  # a selection applies to all parts


def _curve(means: pd.DataFrame, x: tuple[str, str], log: bool) -> alt.Chart:
    """Return the common part of lines, points and bands of curves: the setting, colours, and tooltips."""
    spread, names = means.spread.fillna(0), list(dict.fromkeys(means.row))
    means = means.assign(low=means["mean"] - spread, high=means["mean"] + spread)
    axis = alt.X(f"{x[0]}:Q", title=x[1]).axis(values=sorted(set(means[x[0]])), format="~g")
    told = [alt.Tooltip("row:N", title="curve"), alt.Tooltip(f"{x[0]}:Q", title=x[1])]
    told.append(alt.Tooltip("mean:Q", title=_TOP1, format=".2f"))
    if spread.any():
        told.append(alt.Tooltip("spread:Q", title="standard deviation", format=".2f"))
    return alt.Chart(means, width=_WIDTH, height=_HEIGHT).encode(
        axis.scale(type="log", base=2) if log else axis,
        color=alt.Color("row:N", title=None, sort=names).scale(range=_colours(names)),
        tooltip=[*told, "seeds:Q"],
    )


def _of(model: str, chart: alt.Chart) -> alt.Chart:
    """Return the part of a chart for a network."""
    return chart.transform_filter(alt.datum.model == model)


def _lines(levels: pd.DataFrame) -> alt.Chart:
    """Return horizontal lines, with dashes of their own."""
    return (
        alt.Chart(levels)
        .mark_rule(color="grey")
        .encode(
            alt.Y("top1:Q"),
            strokeDash=alt.StrokeDash("title:N", title=None),
            tooltip=["title:N", alt.Tooltip("top1:Q", title=_TOP1, format=".2f")],
        )
    )


def differences(settings: pd.DataFrame, images: Sequence[str], methods: Sequence[str]) -> alt.TopLevelMixin:
    """Return the differences of sources to a baseline, a part for each width of weights, a dot for each setting.

    The legend selects methods and the list below it a network. `settings` has the columns `images`, `method`, `model`,
    `bits`, `quantized`, `weights` and `difference`; `images` and `methods` are in the order to be shown.
    """
    pick = _pick("method")
    names = sorted(set(settings.model))
    network = alt.selection_point(
        fields=["model"],
        bind=alt.binding_select(options=[None, *names], labels=["all networks", *names], name="network "),
    )
    columns = ["images", "method", "model", "bits", "quantized", "weights", "difference"]
    dots = (
        alt.Chart()
        .mark_circle(size=45)
        .encode(
            alt.X("difference:Q", title="points of top-1"),
            alt.Y("images:N", title=None, sort=list(images)),
            alt.Color("method:N", title=None, sort=list(methods)).scale(range=_colours(methods)),
            yOffset="jitter:Q",
            opacity=alt.when(pick, network).then(alt.value(0.7)).otherwise(alt.value(0)),
            tooltip=[*columns[:5], alt.Tooltip("difference:Q", format="+.2f")],
        )
    )
    zero = alt.Chart().mark_rule(color="grey").encode(x=alt.datum(0))
    parts = alt.layer(zero, dots.transform_calculate(jitter="random()"), data=settings[columns])
    parts = parts.properties(width=_WIDTH, height=_HEIGHT)
    title = alt.Header(title=None, labelExpr="datum.value + '-bit weights'")
    return _finished(parts.facet(alt.Facet("weights:N", header=title), columns=2).add_params(pick, network))


def costs(points: pd.DataFrame, front: pd.DataFrame, images: Sequence[str]) -> alt.TopLevelMixin:
    """Return top-1 over seconds, a part for each network: zoom by wheel, move by dragging, reset by a double click.

    `points` has the columns `model`, `calibrated with`, `method`, `seconds` and `top1`, and `front` has those of its
    rows that a line connects; `images` are in the order to be shown, and are selected in the legend.
    """
    pick = _pick("calibrated with")
    told = ["calibrated with", "method", alt.Tooltip("seconds:Q", format=".3~s")]
    base = alt.Chart(width=_WIDTH, height=_HEIGHT).encode(
        alt.X("seconds:Q").scale(type="log", padding=8), alt.Y("top1:Q", title=_TOP1).scale(zero=False, padding=8)
    )
    dots = base.mark_point(filled=True, size=60).encode(
        color=alt.Color("calibrated with:N", title=None, sort=list(images)).scale(range=_colours(images)),
        shape=alt.Shape("method:N", title=None),
        opacity=alt.when(pick).then(alt.value(0.9)).otherwise(alt.value(0.05)),
        tooltip=[*told, alt.Tooltip("top1:Q", title=_TOP1, format=".2f")],
    )
    line = base.mark_line(interpolate="step-after", color="grey", strokeWidth=1)
    parts = []
    for number, name in enumerate(sorted(set(points.model))):
        here, joined = points[points.model == name], front[front.model == name]
        zoom = alt.selection_interval(bind="scales", name=f"zoom_{number}")
        dotted = dots.properties(data=here[["calibrated with", "method", "seconds", "top1"]])
        dotted = dotted.add_params(zoom, pick) if number == 0 else dotted.add_params(zoom)
        parts.append(alt.layer(line.properties(data=joined[["seconds", "top1"]]), dotted, title=name))
    return _finished(alt.concat(*parts, columns=2))


def _pick(field: str) -> alt.Parameter:
    """Return a selection of some of a legend's entries: by a click, with the shift key for several."""
    return alt.selection_point(fields=[field], bind="legend")


def _colours(names: Sequence[str]) -> list[str]:
    """Return the colours of these names in the printed figure, in their order."""
    palette: list[str] = sns.color_palette(
        "husl" if len(names) > len(sns.color_palette()) else None, len(names)
    ).as_hex()
    return palette


def _finished(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    finished: alt.TopLevelMixin = (
        chart.configure(background="transparent", font="sans-serif")
        .configure_view(stroke=None)
        .configure_legend(orient="bottom", columns=3, labelLimit=0)
    )
    return finished
