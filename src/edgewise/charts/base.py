"""What the charts share: what a quantity is called and reads like, axis labels, tooltips, and the page's look."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

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

HUES = (
    *("#8c99a1", "#e15759", "#4e79a7", "#59a14f", "#f28e2b", "#b07aa1", "#1fa3a3", "#c9a227"),
    *("#9c755f", "#e377c2", "#6b6ecf", "#0b7d77", "#8ca252", "#bd5d38", "#3182bd", "#d6616b"),
)
FONT = "ui-sans-serif, system-ui, sans-serif"
LEAST_SPAN = 0.02  # of the accuracy axis: a difference of a hundredth must not look like a cliff
CHOSEN = "datum.of === quantity"


def chosen(values: Mapping[str, Any]) -> alt.ExprRef:
    """Return an expression for the value that belongs to the quantity the reader chose."""
    import altair as alt

    return alt.ExprRef(f"({json.dumps(values)})[quantity]")


def amount(columns: Iterable[str] = (), logarithms: Sequence[str] = ()) -> str:
    """Return the expression of an axis label, such as 500 µs: of the chosen one of these columns, or seconds.

    Args:
        columns: that can be chosen.
        logarithms: those of them whose axis has powers of ten.
    """
    units = {c: "s" if c.endswith("_s") else "B" if c.endswith("_bytes") else "" for c in columns}
    unit = f"({json.dumps(units)})[quantity]" if units else "'s'"
    value = f"(indexof({json.dumps(logarithms)}, quantity) >= 0 ? pow(10, datum.value) : datum.value)"
    value = value if logarithms else "datum.value"
    text = f"replace(format({value}, '{'.2~s' if logarithms else '~s'}'), /([^0-9.]?)$/, ' $1') + {unit}"
    shares = [c for c in units if c.endswith("_ratio")]
    return f"indexof({json.dumps(shares)}, quantity) >= 0 ? format({value}, '.0%') : {text}" if shares else text


def tooltip(*fields: str, **titles: str) -> list[alt.Tooltip]:
    """Return what a mark tells of itself: these of its fields, as texts; `titles` are of those with other names."""
    import altair as alt

    return [alt.Tooltip(f"{field}:N", title=titles.get(field, field)) for field in fields]


def finished(chart: Any, height_px: int, description: str) -> Spec:
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
