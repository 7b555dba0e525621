"""Accuracy against cost: one run with its steps, or many runs in series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgewise.charts.base import (
    CHOSEN,
    COST,
    HUES,
    LEAST_SPAN,
    RELATIVE,
    Readings,
    Row,
    Spec,
    amount,
    chosen,
    finished,
    tooltip,
)
from edgewise.units import format_fraction

BUBBLE_AREA = 2000.0  # px² of the largest file's bubble; areas are in proportion to the bytes
HOLLOW_AREA = 60.0  # px² where there is no file
LEAST_AREA = 20.0  # px², so that every bubble is seen
NEAR = 0.1  # of an axis: bubbles nearer than this in both directions share a label
WIDE = 20.0  # the largest cost over the least from which a chart of series has a logarithmic axis
MARK_AREA = 90.0  # px² of a point of a series
# Of as many series, told apart on light and dark paper; the grey is for what all are compared with.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


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


def plane(points: Sequence[Point], limits: Mapping[str, float], description: str, metric: str = "accuracy") -> Spec:
    """Draw accuracy against a cost that the reader chooses, bubbles as large as the files.

    Args:
        points: what is drawn; at least one must have an accuracy and a cost.
        limits: the budget: the most of any column of `COST`, and the least "accuracy". Where it holds is shaded.
        description: what is to be seen, for those who do not see it.
        metric: what the accuracy is called.
    """
    import altair as alt

    views = {column: _view(points, limits, column) for column in known_costs(points)}
    marks = [mark for column, view in views.items() for mark in _bubbles(points, column, view)]
    x = alt.X(
        "x:Q",
        title=None,
        scale=alt.Scale(domain=chosen({c: [0, v.right] for c, v in views.items()}), nice=False),
        axis=alt.Axis(labelExpr=amount(views), tickCount=6),
    )
    y = alt.Y(
        "y:Q",
        title=None,
        scale=alt.Scale(domain=chosen({c: [v.bottom, v.top] for c, v in views.items()}), nice=False),
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
        tooltip=tooltip("network", "accuracy", *(name for name, _ in COST.values()), accuracy=metric),
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
    return finished(alt.layer(*layers).add_params(first), 340, description)


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


def families(points: Sequence[Point], description: str, first: str = "", metric: str = "accuracy") -> Spec:
    """Draw accuracy against a cost that the reader chooses, in series: each has its colour, and its points are joined.

    A cost that spans more than a factor of `WIDE` is drawn on a logarithmic axis.

    Args:
        points: what is drawn, of each a line, a series and a model; those of one line are joined in their order. Costs
            are by column of `RELATIVE`.
        description: what is to be seen, for those who do not see it.
        first: the column that is chosen until the reader chooses another.
        metric: what the accuracy is called.
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
                scale=alt.Scale(domain=chosen(reach), nice=False),
                axis=alt.Axis(labelExpr=amount(views, [c for c, is_wide in wide.items() if is_wide]), tickCount=6),
            ),
            y=alt.Y(
                "y:Q",
                title=metric,
                scale=alt.Scale(domain=chosen({c: [v.bottom, v.top] for c, v in views.items()}), nice=False),
                axis=alt.Axis(labelExpr="format(datum.value, '.1~%')", tickCount=6),
            ),
        )
    )
    lines = base.mark_line(strokeWidth=1.5, opacity=0.7).encode(color=colour, detail="line:N", order="order:Q")
    drawn = base.mark_point(size=MARK_AREA, filled=True, opacity=0.9).encode(
        color=colour,
        shape=shape,
        tooltip=tooltip("network", "series", "accuracy", *(name for name, _ in RELATIVE.values()), accuracy=metric),
    )
    front = base.transform_filter("datum.front").mark_point(size=3.2 * MARK_AREA, strokeWidth=1.5, color="var(--ink)")
    param = alt.param(name="quantity", value=next(iter(views)))
    return finished(alt.layer(lines, drawn, front).add_params(param), 420, description)


def _least(points: Sequence[Point], column: str) -> float:
    return min((cost for point in points if (cost := point.costs.get(column)) is not None), default=0.0)


def _along(cost: float, wide: bool) -> float:
    """Return where a cost lies on its axis."""
    return math.log10(cost) if wide else cost
