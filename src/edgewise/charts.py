"""The report's charts, as Vega-Lite specifications made with Altair.

Colours are the page's CSS variables, so one drawing serves light, dark and paper. Where the reader may choose what is
drawn, every mark says of which quantity it is (`of`), and the parameter `quantity` picks. Texts are formatted here;
what comes from the user is data, never part of an expression.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from edgewise.units import format_bytes, format_count, format_fraction, format_seconds

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]
Row = Mapping[str, Any]
Readings = dict[str, tuple[str, Callable[[float | None], str]]]  # by column: what people call it, how they read it

COST: Readings = {
    "latency_s": ("latency", format_seconds),
    "file_bytes": ("file", format_bytes),
    "weight_bytes": ("weights", format_bytes),
    "peak_activation_bytes": ("memory", format_bytes),
    "macs": ("MACs", format_count),
    "params": ("params", format_count),
    "nonzero": ("nonzero", format_count),
}
# Of runs that were measured at different times: each beside its own dense network, so that only the share compares.
RELATIVE: Readings = {
    "latency_ratio": ("latency, of dense", format_fraction),
    **{column: reading for column, reading in COST.items() if column != "latency_s"},
}
LAYER_COST: Readings = {
    "macs": ("MACs", format_count),
    "params": ("params", format_count),
    "weight_bytes": ("weights", format_bytes),
    "activation_bytes": ("activations", format_bytes),
}

FONT = "ui-sans-serif, system-ui, sans-serif"
BUBBLE_AREA = 2000.0  # px² of the largest file's bubble; areas are in proportion to the bytes
HOLLOW_AREA = 60.0  # px² where there is no file
LEAST_AREA = 20.0  # px², so that every bubble is seen
LEAST_SPAN = 0.02  # of the accuracy axis: a difference of a hundredth must not look like a cliff
NEAR = 0.1  # of an axis: bubbles nearer than this in both directions share a label
SMALL_LAYER = 0.005  # of the whole network: layers below it in everything are drawn as one
STRIP_SAMPLES = 300  # drawn of a measurement; its box and its figures are of all
CHOSEN = "datum.of === quantity"
WIDE = 20.0  # the largest cost over the least from which a chart of series has a logarithmic axis
MARK_AREA = 90.0  # px² of a point of a series
# Of as many series, told apart on light and dark paper; the grey is for what all are compared with.
HUES = (
    *("#8c99a1", "#e15759", "#4e79a7", "#59a14f", "#f28e2b", "#b07aa1", "#1fa3a3", "#c9a227"),
    *("#9c755f", "#e377c2", "#6b6ecf", "#0b7d77", "#8ca252", "#bd5d38", "#3182bd", "#d6616b"),
)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
ROW_PX = 46  # of a group's sensitivity curve
LAST_LETTERS = "length(datum.label) > 21 ? '…' + slice(datum.label, -20) : datum.label"  # where layers' names differ


# -- accuracy against cost ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A network in the plane of accuracy and cost.

    Args:
        name: which network it is.
        label: what stands above its bubble.
        line: points with the same line are joined in their order.
        role: the dense network, a step on the way, a result, or a result that another beats.
        accuracy: a fraction; a point without one is not drawn.
        costs: by column of `COST` or `RELATIVE`; None where unknown.
        series: what it is one of, in a chart of `families`.
        model: whose network it is.
    """

    name: str
    label: str
    line: str
    role: Literal["dense", "step", "result", "beaten"]
    accuracy: float | None
    costs: Mapping[str, float | None]
    series: str = ""
    model: str = ""


@dataclass(frozen=True)
class View:
    """How far the axes of one quantity reach: costs from 0 to `right`, accuracy from `bottom` to `top`."""

    right: float
    bottom: float
    top: float


def known_costs(points: Iterable[Point], readings: Readings = COST, first: str = "") -> dict[str, str]:
    """Return the columns that some point can be drawn by, with what people call them.

    What is not zero is told where it is not simply every parameter.

    Args:
        points: to be drawn.
        readings: the columns.
        first: of them comes first.
    """
    drawn = [point for point in points if point.accuracy is not None]
    readings = {column: readings[column] for column in sorted(readings, key=lambda column: column != first)}
    sparse = any(point.costs.get("nonzero") != point.costs.get("params") for point in drawn)
    known = {c: name for c, (name, _) in readings.items() if any(point.costs.get(c) is not None for point in drawn)}
    return known if sparse else {c: name for c, name in known.items() if c != "nonzero"}


def plane(points: Sequence[Point], limits: Mapping[str, float], description: str) -> Spec:
    """Draw accuracy against a cost that the reader chooses, bubbles as large as the files.

    Args:
        points: what is drawn; at least one must have an accuracy and a cost.
        limits: the budget: the most of any column of `COST`, and the least "accuracy". Where it holds is shaded.
        description: what is to be seen, for those who do not see it.
    """
    import altair as alt

    views = {column: _view(points, limits, column) for column in known_costs(points)}
    marks = [mark for column, view in views.items() for mark in _bubbles(points, column, view)]
    x = alt.X(
        "x:Q",
        title=None,
        scale=alt.Scale(domain=_chosen({c: [0, v.right] for c, v in views.items()}), nice=False),
        axis=alt.Axis(labelExpr=_amount(views), tickCount=6),
    )
    y = alt.Y(
        "y:Q",
        title=None,
        scale=alt.Scale(domain=_chosen({c: [v.bottom, v.top] for c, v in views.items()}), nice=False),
        axis=alt.Axis(labelExpr="format(datum.value, '.1~%')", tickCount=6),
    )
    base = alt.Chart(alt.InlineData(values=marks)).encode(x=x, y=y).transform_filter(CHOSEN)
    roles = {"dense": "dense", "step": "step", "result": "accent", "beaten": "step"}
    colours = alt.Scale(domain=list(roles), range=[f"var(--{name})" for name in roles.values()])
    bubbles = base.mark_circle(opacity=0.85, strokeWidth=1.5).encode(
        size=alt.Size("area:Q", scale=None),
        fill=alt.condition(
            "datum.file_known", alt.Fill("role:N", scale=colours, legend=None), alt.value("var(--panel)")
        ),
        stroke=alt.Stroke("role:N", scale=colours, legend=None),
        tooltip=_tooltip("network", "accuracy", *(name for name, _ in COST.values())),
    )
    path = base.mark_line(strokeWidth=1.5, strokeDash=[2, 3], color="var(--muted)")
    labels = [
        base.mark_text(dy=-radius - 7, fontSize=12, fontWeight=500, color="var(--ink)")
        .encode(text="label:N")
        .transform_filter(f"datum.label && datum.radius === {radius}")
        for radius in sorted({mark["radius"] for mark in marks})
    ]
    corner = alt.Chart(alt.InlineData(values=_corners(limits, views))).mark_rect(
        fill="var(--good)", fillOpacity=0.08, stroke="var(--good)", strokeOpacity=0.5, strokeDash=[4, 4], clip=True
    )
    layers = [
        corner.encode(x=x, x2="right:Q", y=y, y2="top:Q").transform_filter(CHOSEN),
        path.encode(detail="line:N", order="order:Q"),
        bubbles,
        *labels,
    ]
    first = alt.param(name="quantity", value=next(iter(views)))
    return _finished(alt.layer(*layers).add_params(first), 340, description)


def _view(points: Sequence[Point], limits: Mapping[str, float], column: str) -> View:
    """Return the axes that show every point and the budget, with room for the labels."""
    shown = [p for p in points if p.accuracy is not None and p.costs.get(column) is not None]
    heights = [p.accuracy for p in shown if p.accuracy is not None] + [limits[c] for c in limits if c == "accuracy"]
    span = max(max(heights) - min(heights), LEAST_SPAN)
    right = max([*(p.costs[column] or 0 for p in shown), limits.get(column, 0)])
    return View((right or 1) * 1.12, max(max(heights) - 1.16 * span, 0), max(heights) + 0.24 * span)


def _bubbles(points: Sequence[Point], column: str, view: View) -> list[Spec]:
    """Return the marks of one quantity; where labels would cover each other the largest bubble bears them all."""
    largest = max((p.costs.get("file_bytes") or 0 for p in points), default=0) or 1
    marks: list[Spec] = []
    clusters: list[tuple[Spec, list[Spec]]] = []  # the first of a cluster, and all of it
    for order, point in enumerate(points):
        cost, size = point.costs.get(column), point.costs.get("file_bytes")
        if cost is None or point.accuracy is None:
            continue
        area = HOLLOW_AREA if size is None else max(BUBBLE_AREA * size / largest, LEAST_AREA)
        mark: Spec = {"of": column, "order": order, "line": point.line, "role": point.role, "label": point.label}
        mark |= {"x": cost, "y": point.accuracy, "file_known": size is not None}
        mark |= {"area": round(area, 1), "radius": round(math.sqrt(area / math.pi))}
        mark |= {"network": point.name, "accuracy": format_fraction(point.accuracy)}
        mark |= {name: form(point.costs.get(c)) for c, (name, form) in COST.items()}
        marks.append(mark)
        near = (c for first, c in clusters if _are_near(first, mark, view))
        cluster = next(near, None)
        if cluster is None:
            clusters.append((mark, [mark]))
        else:
            cluster.append(mark)
    for _, cluster in clusters:
        labels = list(dict.fromkeys(mark["label"] for mark in cluster))
        for mark in cluster:
            mark["label"] = ""
        bearer = max(cluster, key=lambda mark: mark["radius"])
        bearer["label"] = " · ".join(labels) if len(labels) < 3 else f"{labels[0]} … {labels[-1]}"
    return marks


def _are_near(a: Row, b: Row, view: View) -> bool:
    across: float = abs(a["x"] - b["x"]) / view.right
    up: float = abs(a["y"] - b["y"]) / (view.top - view.bottom)
    return across < NEAR and up < NEAR


def _corners(limits: Mapping[str, float], views: Mapping[str, View]) -> list[Spec]:
    """Return where the budget holds, in each of the views that it limits."""
    return [
        {
            "of": column,
            "x": 0,
            "right": limits.get(column, view.right),
            "y": limits.get("accuracy", view.bottom),
            "top": view.top,
        }
        for column, view in views.items()
        if column in limits or "accuracy" in limits
    ]


def families(points: Sequence[Point], description: str, first: str = "") -> Spec:
    """Draw accuracy against a cost that the reader chooses, in series: each has its colour, and its points are joined.

    A cost that spans more than a factor of `WIDE` is drawn on a logarithmic axis.

    Args:
        points: what is drawn, of each a line, a series and a model; those of one line are joined in their order. Costs
            are by column of `RELATIVE`.
        description: what is to be seen, for those who do not see it.
        first: the column that is chosen until the reader chooses another.
    """
    import altair as alt

    views = {column: _view(points, {}, column) for column in known_costs(points, RELATIVE, first)}
    shown = [point for point in points if point.accuracy is not None]
    least = {column: _least(shown, column) for column in views}
    wide = {column: low > 0 and views[column].right > WIDE * low for column, low in least.items()}
    reach = {
        column: [math.log10(0.8 * least[column]) if wide[column] else 0, _along(view.right, wide[column])]
        for column, view in views.items()
    }
    marks: list[Spec] = [
        {"of": column, "order": order, "line": point.line, "series": point.series, "model": point.model}
        | {"x": _along(cost, wide[column]), "y": point.accuracy, "front": point.role == "result"}
        | {"network": point.name, "accuracy": format_fraction(point.accuracy)}
        | {name: form(point.costs.get(c)) for c, (name, form) in RELATIVE.items()}
        for column in views
        for order, point in enumerate(shown)
        if (cost := point.costs.get(column)) is not None
    ]
    series, models = (list(dict.fromkeys(mark[key] for mark in marks)) for key in ("series", "model"))
    hues = alt.Scale(domain=series, range=[HUES[i % len(HUES)] for i in range(len(series))])
    kinds = alt.Scale(domain=models, range=[SHAPES[i % len(SHAPES)] for i in range(len(models))])
    key: dict[str, Any] = {
        "orient": "top",
        "title": None,
        "labelLimit": 0,
        "symbolOpacity": 1,
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
    }
    colour = alt.Color("series:N", scale=hues, sort=None, legend=alt.Legend(columns=5, symbolType="circle", **key))
    shape = alt.Shape("model:N", scale=kinds, sort=None, legend=alt.Legend(**key) if len(models) > 1 else None)
    base = (
        alt.Chart(alt.InlineData(values=marks))
        .transform_filter(CHOSEN)
        .encode(
            x=alt.X(
                "x:Q",
                title=None,
                scale=alt.Scale(domain=_chosen(reach), nice=False),
                axis=alt.Axis(labelExpr=_amount(views, [c for c, is_wide in wide.items() if is_wide]), tickCount=6),
            ),
            y=alt.Y(
                "y:Q",
                title="accuracy",
                scale=alt.Scale(domain=_chosen({c: [v.bottom, v.top] for c, v in views.items()}), nice=False),
                axis=alt.Axis(labelExpr="format(datum.value, '.1~%')", tickCount=6),
            ),
        )
    )
    lines = base.mark_line(strokeWidth=1.5, opacity=0.7).encode(color=colour, detail="line:N", order="order:Q")
    drawn = base.mark_point(size=MARK_AREA, filled=True, opacity=0.9).encode(
        color=colour,
        shape=shape,
        tooltip=_tooltip("network", "series", "accuracy", *(name for name, _ in RELATIVE.values())),
    )
    front = base.transform_filter("datum.front").mark_point(size=3.2 * MARK_AREA, strokeWidth=1.5, color="var(--ink)")
    chosen = alt.param(name="quantity", value=next(iter(views)))
    return _finished(alt.layer(lines, drawn, front).add_params(chosen), 420, description)


def _least(points: Sequence[Point], column: str) -> float:
    return min((cost for point in points if (cost := point.costs.get(column)) is not None), default=0.0)


def _along(cost: float, wide: bool) -> float:
    """Return where a cost lies on its axis."""
    return math.log10(cost) if wide else cost


# -- where the cost sits --------------------------------------------------------------------------------------------


def layer_bars(layers: Sequence[Row]) -> Spec:
    """Draw what each layer costs before (pale) and after (solid), of a quantity that the reader chooses."""
    import altair as alt

    shown = _gathered(layers)
    marks = [_layer_mark(layer, column) for column in LAYER_COST for layer in shown]
    most = {column: max(mark["most"] for mark in marks if mark["of"] == column) for column in LAYER_COST}
    room = _chosen({column: [0, (value or 1) * 1.16] for column, value in most.items()})  # for the text at the end
    x = alt.X(
        "was:Q",
        title=None,
        scale=alt.Scale(domain=room, nice=False),
        axis=alt.Axis(labelExpr=_amount(LAYER_COST), orient="top", tickCount=5),
    )
    base = (
        alt.Chart(alt.InlineData(values=marks))
        .transform_filter(CHOSEN)
        .encode(
            y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelExpr=LAST_LETTERS, grid=False)),
            tooltip=_tooltip("layer", "kind", "quantity", "before", "after", "kept"),
        )
    )
    before = base.mark_bar(height=13, cornerRadiusEnd=2, color="var(--dense)", opacity=0.38).encode(x=x)
    after = base.mark_bar(height=7, cornerRadiusEnd=2, color="var(--accent)").encode(x="is:Q")
    kept = base.mark_text(align="left", dx=5, fontSize=11, color="var(--muted)").encode(x="most:Q", text="kept:N")
    chart = alt.layer(before, after, kept).add_params(alt.param(name="quantity", value="macs"))
    return _finished(chart, 19 * len(shown) + 10, "Cost of each layer before and after.")


def _gathered(layers: Sequence[Row]) -> list[Row]:
    """Return the layers in their order, those that are small in everything summed into one at the end."""
    totals = {column: sum(layer["before"][column] for layer in layers) for column in LAYER_COST}

    def is_small(layer: Row) -> bool:
        most = {column: max(layer["before"][column], layer["after"][column]) for column in LAYER_COST}
        return all(most[column] <= SMALL_LAYER * totals[column] for column in LAYER_COST)

    small = [layer for layer in layers if is_small(layer)]
    if len(small) < 2:
        return list(layers)
    rest: Spec = {"name": f"{len(small)} small layers", "kind": f"each under {SMALL_LAYER:.1%}"}
    for when in ("before", "after"):
        rest[when] = {column: sum(layer[when][column] for layer in small) for column in LAYER_COST}
    return [*(layer for layer in layers if not is_small(layer)), rest]


def _layer_mark(layer: Row, column: str) -> Spec:
    """Return the bars of one layer in one quantity."""
    name, form = LAYER_COST[column]
    was, now = layer["before"][column], layer["after"][column]
    return {
        "of": column,
        "quantity": name,
        "layer": layer["name"] or "(network)",
        "kind": layer["kind"],
        "was": was,
        "is": now,
        "most": max(was, now),
        "before": form(was),
        "after": form(now),
        "kept": f"{now / was:.0%}" if was and now else "gone" if was else "new" if now else "",
    }


# -- how long it takes ----------------------------------------------------------------------------------------------


def latency_strips(samples_s: Mapping[str, Sequence[float]]) -> Spec:
    """Draw the latency samples of each network, seconds, with a band of the quartiles and the median; dense first."""
    import altair as alt

    names, right = list(samples_s), reach(samples_s.values())
    stats = {name: quantiles(samples) for name, samples in samples_s.items()}
    x = alt.X(
        "sample_s:Q",
        title=None,
        scale=alt.Scale(domain=[0, right], nice=False),
        axis=alt.Axis(labelExpr=_amount(), tickCount=6),
    )
    y = alt.Y("network:N", sort=None, title=None, axis=alt.Axis(grid=False))
    place = alt.Scale(domain=[0, 1])  # within a network's row: the band above, the strip below
    colours = alt.Scale(domain=names, range=["var(--dense)", *["var(--accent)"] * (len(names) - 1)])
    colour = alt.Color("network:N", scale=colours, legend=None)
    strip = (
        alt.Chart(alt.InlineData(values=[m for name, s in samples_s.items() for m in _strip(name, s, right)]))
        .mark_circle(size=14, opacity=0.4)
        .encode(x=x, y=y, yOffset=alt.YOffset("place:Q", scale=place), color=colour)
        .encode(tooltip=_tooltip("network", "sample"))
    )
    boxes = [
        {"network": name, **found, **{key.removesuffix("_s"): format_seconds(value) for key, value in found.items()}}
        for name, found in stats.items()
    ]
    box = alt.Chart(alt.InlineData(values=boxes)).encode(
        y=y,
        yOffset=alt.YOffset(datum=0.27, scale=place),
        tooltip=_tooltip("network", "least", "lower", "median", "upper", "most"),
    )
    band = box.mark_rule(strokeWidth=18, opacity=0.55).encode(x="lower_s:Q", x2="upper_s:Q", color=colour)
    median = box.mark_point(shape="stroke", angle=90, size=520, strokeWidth=2.5, color="var(--ink)")
    chart = alt.layer(strip, band, median.encode(x="median_s:Q"))
    return _finished(chart, 84 * len(names), "Latency samples of each network, with quartiles and median.")


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """Return the least, the quartiles and the most of some samples, interpolated between neighbours.

    >>> quantiles([4.0, 1.0, 3.0, 2.0])
    {'least_s': 1.0, 'lower_s': 1.75, 'median_s': 2.5, 'upper_s': 3.25, 'most_s': 4.0}
    """
    ordered = sorted(samples)

    def at(share: float) -> float:
        low, rest = divmod(share * (len(ordered) - 1), 1)
        low_value, high_value = ordered[int(low)], ordered[math.ceil(low + rest)]
        return low_value + rest * (high_value - low_value)

    shares = {"least_s": 0.0, "lower_s": 0.25, "median_s": 0.5, "upper_s": 0.75, "most_s": 1.0}
    return {name: at(share) for name, share in shares.items()}


def reach(samples_s: Iterable[Sequence[float]]) -> float:
    """Return how far the latency axis goes, in seconds: a few stragglers must not flatten all the rest."""
    found = [quantiles(samples) for samples in samples_s]
    return 1.05 * min(max(f["most_s"] for f in found), 2 * max(f["upper_s"] for f in found))


def _strip(name: str, samples: Sequence[float], right: float) -> list[Spec]:
    """Return at most `STRIP_SAMPLES` dots, evenly spaced in their order, scattered by the golden ratio."""
    stride = math.ceil(len(samples) / STRIP_SAMPLES)
    return [
        {"network": name, "sample_s": s, "sample": format_seconds(s), "place": round(0.5 + 0.4 * (i * 0.618034 % 1), 3)}
        for i, s in enumerate(samples[::stride])
        if s <= right
    ]


# -- how it learnt --------------------------------------------------------------------------------------------------


def training_curves(curves: Mapping[str, Row]) -> Spec:
    """Draw the training loss, one line a step, one after the other."""
    import altair as alt

    starts = [0, *accumulate(len(curve["epoch"]) for curve in curves.values())]
    marks = [
        {"step": step, "at": start + i + 1, "epoch": epoch, "value": loss, "loss": f"{loss:.4g}"}
        for start, (step, curve) in zip(starts, curves.items(), strict=False)
        for i, (epoch, loss) in enumerate(zip(curve["epoch"], curve["loss"], strict=True))
    ]
    colours = alt.Scale(range=["var(--accent)", "var(--second)", "var(--third)"])
    base = alt.Chart(alt.InlineData(values=marks)).encode(
        x=alt.X(
            "at:Q",
            title="epochs of the run",
            scale=alt.Scale(domain=[0, starts[-1] + 1], nice=False),
            axis=alt.Axis(format="d", tickMinStep=1, grid=False),
        ),
        y=alt.Y("value:Q", title=None, axis=alt.Axis(tickCount=5)),
        color=alt.Color("step:N", legend=None, scale=colours),
        tooltip=_tooltip("step", "epoch", "loss"),
    )
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28, filled=True))
    name = base.mark_text(align="left", dx=8, dy=-6, fontSize=12, fontWeight=500).encode(text="step:N")
    first = name.transform_filter("datum.epoch === 1")
    return _finished(alt.layer(line, first), 220, "Training loss by epoch, one line for each training step.")


# -- what the channels are worth -------------------------------------------------------------------------------------


def sensitivity_curves(curves: Mapping[str, Row]) -> Spec:
    """Draw the accuracy without a share of each group's channels, a row for each group, and the rate that was chosen.

    Args:
        curves: by group "rate" and "accuracy", both fractions, "knee", the rate, and "found", whether it is one.
    """
    import altair as alt

    marks = [
        {"group": group, "rate": rate, "height": accuracy, "removed": f"{rate:.0%}", "chosen": rate == curve["knee"]}
        | {"accuracy": format_fraction(accuracy), "kind": "knee" if curve["found"] else "within the tolerance"}
        for group, curve in curves.items()
        for rate, accuracy in zip(curve["rate"], curve["accuracy"], strict=True)
    ]
    heights = [mark["height"] for mark in marks]
    low, high = min(heights), max(max(heights), min(heights) + LEAST_SPAN)
    x = alt.X(
        "rate:Q",
        title="share of the group's channels removed",
        scale=alt.Scale(domain=[0, max(mark["rate"] for mark in marks)], nice=False),
        axis=alt.Axis(format="~%", tickCount=6),
    )
    base = alt.Chart(alt.InlineData(values=marks)).encode(
        x=x,
        y=alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelExpr=LAST_LETTERS, grid=True)),
        yOffset=alt.YOffset("height:Q", scale=alt.Scale(domain=[high, low])),
        tooltip=_tooltip("group", "removed", "accuracy", "kind"),
    )
    line = base.mark_line(strokeWidth=1.5, color="var(--dense)").encode(detail="group:N")
    points = base.mark_circle(size=14, color="var(--dense)")
    chosen = base.transform_filter("datum.chosen").mark_circle(size=70, strokeWidth=2, opacity=1)
    knees = chosen.encode(
        stroke=alt.value("var(--accent)"),
        fill=alt.condition("datum.kind === 'knee'", alt.value("var(--accent)"), alt.value("var(--panel)")),
    )
    chart = alt.layer(line, points, knees)
    return _finished(chart, ROW_PX * len(curves), "Accuracy without a share of each group's channels.")


def exclusion_curve(points: Sequence[Row]) -> Spec:
    """Draw the held-out accuracy as more and more layers are left in floats.

    Args:
        points: in their order "layer", the one that was left out last, and "accuracy", a fraction.
    """
    import altair as alt

    marks = [
        {"left": count, "height": point["accuracy"], "layer": point["layer"] or "none"}
        | {"accuracy": format_fraction(point["accuracy"])}
        for count, point in enumerate(points)
    ]
    chart = (
        alt.Chart(alt.InlineData(values=marks))
        .mark_line(strokeWidth=2, color="var(--accent)", point=alt.OverlayMarkDef(size=28, color="var(--accent)"))
        .encode(
            x=alt.X("left:Q", title="layers left in floats", axis=alt.Axis(format="d", tickMinStep=1, grid=False)),
            y=alt.Y("height:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(format=".1%", tickCount=5)),
            tooltip=_tooltip("left", "layer", "accuracy"),
        )
    )
    return _finished(chart, 220, "Held-out accuracy by the number of layers left in floats.")


def array_bars(layers: Sequence[Row]) -> Spec:
    """Draw each layer's cycles on an array of processing elements: of all its tiles (pale), of those that run (solid).

    Args:
        layers: in their order "layer", "tiles", "skipped", "dense_cycles" and "cycles".
    """
    import altair as alt

    marks = [
        {"layer": layer["layer"], "was": layer["dense_cycles"], "is": layer["cycles"]}
        | {"tiles": format_count(layer["tiles"]), "skipped": format_count(layer["skipped"])}
        | {"cycles": format_count(layer["cycles"]), "with all tiles": format_count(layer["dense_cycles"])}
        for layer in layers
    ]
    base = alt.Chart(alt.InlineData(values=marks)).encode(
        y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelExpr=LAST_LETTERS, grid=False)),
        tooltip=_tooltip("layer", "tiles", "skipped", "with all tiles", "cycles"),
    )
    x = alt.X("was:Q", title="cycles", axis=alt.Axis(orient="top", tickCount=5, format="~s"))
    whole = base.mark_bar(height=13, cornerRadiusEnd=2, color="var(--dense)", opacity=0.38).encode(x=x)
    run = base.mark_bar(height=7, cornerRadiusEnd=2, color="var(--accent)").encode(x="is:Q")
    return _finished(
        alt.layer(whole, run), 19 * len(marks) + 10, "Cycles of each layer, of all tiles and of those run."
    )


# -- what all share -------------------------------------------------------------------------------------------------


def _chosen(values: Mapping[str, Any]) -> alt.ExprRef:
    """Return an expression for the value that belongs to the quantity the reader chose."""
    import altair as alt

    return alt.ExprRef(f"({json.dumps(values)})[quantity]")


def _amount(columns: Iterable[str] = (), logarithms: Sequence[str] = ()) -> str:
    """Return the expression of an axis label, such as 500 µs: of the chosen one of these columns, or seconds.

    Args:
        columns: that can be chosen.
        logarithms: those of them whose axis has powers of ten.
    """
    units = {c: "s" if c.endswith("_s") else "B" if c.endswith("_bytes") else "" for c in columns}
    unit = f"({json.dumps(units)})[quantity]" if units else "'s'"
    value = f"(indexof({json.dumps(logarithms)}, quantity) >= 0 ? pow(10, datum.value) : datum.value)"
    value = value if logarithms else "datum.value"
    amount = f"replace(format({value}, '{'.2~s' if logarithms else '~s'}'), /([^0-9.]?)$/, ' $1') + {unit}"
    shares = [c for c in units if c.endswith("_ratio")]
    return f"indexof({json.dumps(shares)}, quantity) >= 0 ? format({value}, '.0%') : {amount}" if shares else amount


def _tooltip(*fields: str) -> list[alt.Tooltip]:
    import altair as alt

    return [alt.Tooltip(f"{field}:N") for field in fields]


def _finished(chart: Any, height_px: int, description: str) -> Spec:
    """Return a chart's specification, as wide as the page lets it be, in the page's colours."""
    axis = {"labelColor": "var(--muted)", "labelFontSize": 11.5, "labelPadding": 6, "labelSeparation": 10}
    axis |= {"titleColor": "var(--muted)", "titleFontSize": 11.5, "titleFontWeight": "normal", "labelLimit": 150}
    axis |= {"gridColor": "var(--line)", "domain": False, "ticks": False}
    page = {"width": "container", "background": "transparent", "padding": 4}
    drawn = chart.properties(height=height_px, description=description, **page)
    spec: Spec = drawn.configure(font=FONT, view={"stroke": None}, axis=axis, text={"font": FONT}).to_dict()
    return spec


@cache
def vega_script() -> str:
    """Return Vega-Lite and all it needs as one script, to be written into the page; it loads nothing."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=version)
    return script.replace("</script", "<\\/script")
