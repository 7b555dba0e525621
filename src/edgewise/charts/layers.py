"""Layer by layer: what each costs, loses, and would take on an array of processing elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgewise.charts.base import CHOSEN, LAYER_COST, LEAST_SPAN, Row, Spec, amount, chosen, finished, tooltip
from edgewise.units import format_count, format_fraction

if TYPE_CHECKING:
    pass

SMALL_LAYER = 0.005  # of the whole network: layers below it in everything are drawn as one
ROW_PX = 46  # of a group's sensitivity curve
LAST_LETTERS = "length(datum.label) > 21 ? '…' + slice(datum.label, -20) : datum.label"  # where layers' names differ


def layer_bars(layers: Sequence[Row]) -> Spec:
    """Draw what each layer costs before (pale) and after (solid), of a quantity that the reader chooses."""
    import altair as alt

    shown = _gathered(layers)
    marks = [_layer_mark(layer, column) for column in LAYER_COST for layer in shown]
    most = {column: max(mark["most"] for mark in marks if mark["of"] == column) for column in LAYER_COST}
    room = chosen({column: [0, (value or 1) * 1.16] for column, value in most.items()})  # for the text at the end
    x = alt.X(
        "was:Q",
        title=None,
        scale=alt.Scale(domain=room, nice=False),
        axis=alt.Axis(labelExpr=amount(LAYER_COST), orient="top", tickCount=5),
    )
    base = (
        alt.Chart(alt.InlineData(values=marks))
        .transform_filter(CHOSEN)
        .encode(
            y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelExpr=LAST_LETTERS, grid=False)),
            tooltip=tooltip("layer", "kind", "quantity", "before", "after", "kept"),
        )
    )
    before = base.mark_bar(height=13, cornerRadiusEnd=2, color="var(--dense)", opacity=0.38).encode(x=x)
    after = base.mark_bar(height=7, cornerRadiusEnd=2, color="var(--accent)").encode(x="is:Q")
    kept = base.mark_text(align="left", dx=5, fontSize=11, color="var(--muted)").encode(x="most:Q", text="kept:N")
    chart = alt.layer(before, after, kept).add_params(alt.param(name="quantity", value="macs"))
    return finished(chart, 19 * len(shown) + 10, "Cost of each layer before and after.")


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
        tooltip=tooltip("group", "removed", "accuracy", "kind"),
    )
    line = base.mark_line(strokeWidth=1.5, color="var(--dense)").encode(detail="group:N")
    points = base.mark_circle(size=14, color="var(--dense)")
    chosen = base.transform_filter("datum.chosen").mark_circle(size=70, strokeWidth=2, opacity=1)
    knees = chosen.encode(
        stroke=alt.value("var(--accent)"),
        fill=alt.condition("datum.kind === 'knee'", alt.value("var(--accent)"), alt.value("var(--panel)")),
    )
    chart = alt.layer(line, points, knees)
    return finished(chart, ROW_PX * len(curves), "Accuracy without a share of each group's channels.")


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
            tooltip=tooltip("left", "layer", "accuracy"),
        )
    )
    return finished(chart, 220, "Held-out accuracy by the number of layers left in floats.")


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
        tooltip=tooltip("layer", "tiles", "skipped", "with all tiles", "cycles"),
    )
    x = alt.X("was:Q", title="cycles", axis=alt.Axis(orient="top", tickCount=5, format="~s"))
    whole = base.mark_bar(height=13, cornerRadiusEnd=2, color="var(--dense)", opacity=0.38).encode(x=x)
    run = base.mark_bar(height=7, cornerRadiusEnd=2, color="var(--accent)").encode(x="is:Q")
    return finished(alt.layer(whole, run), 19 * len(marks) + 10, "Cycles of each layer, of all tiles and of those run.")
