"""Over time: latencies as they were measured, and losses as they fell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from edgewise.charts.base import HUES, Row, Spec, amount, finished, tooltip
from edgewise.units import format_fraction, format_seconds

STRIP_SAMPLES = 300  # drawn of a measurement; its box and its figures are of all


def latency_strips(samples_s: Mapping[str, Sequence[float]]) -> Spec:
    """Draw the latency samples of each network, seconds, with a band of the quartiles and the median; dense first."""
    import altair as alt

    names, right = list(samples_s), reach(samples_s.values())
    stats = {name: quantiles(samples) for name, samples in samples_s.items()}
    x = alt.X(
        "sample_s:Q",
        title=None,
        scale=alt.Scale(domain=[0, right], nice=False),
        axis=alt.Axis(labelExpr=amount(), tickCount=6),
    )
    y = alt.Y("network:N", sort=None, title=None, axis=alt.Axis(grid=False))
    place = alt.Scale(domain=[0, 1])  # within a network's row: the band above, the strip below
    colours = alt.Scale(domain=names, range=["var(--dense)", *["var(--accent)"] * (len(names) - 1)])
    colour = alt.Color("network:N", scale=colours, legend=None)
    strip = (
        alt.Chart(alt.InlineData(values=[m for name, s in samples_s.items() for m in _strip(name, s, right)]))
        .mark_circle(size=14, opacity=0.4)
        .encode(x=x, y=y, yOffset=alt.YOffset("place:Q", scale=place), color=colour)
        .encode(tooltip=tooltip("network", "sample"))
    )
    boxes = [
        {"network": name, **found, **{key.removesuffix("_s"): format_seconds(value) for key, value in found.items()}}
        for name, found in stats.items()
    ]
    box = alt.Chart(alt.InlineData(values=boxes)).encode(
        y=y,
        yOffset=alt.YOffset(datum=0.27, scale=place),
        tooltip=tooltip("network", "least", "lower", "median", "upper", "most"),
    )
    band = box.mark_rule(strokeWidth=18, opacity=0.55).encode(x="lower_s:Q", x2="upper_s:Q", color=colour)
    median = box.mark_point(shape="stroke", angle=90, size=520, strokeWidth=2.5, color="var(--ink)")
    chart = alt.layer(strip, band, median.encode(x="median_s:Q"))
    return finished(chart, 84 * len(names), "Latency samples of each network, with quartiles and median.")


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
        tooltip=tooltip("step", "epoch", "loss"),
    )
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28, filled=True))
    name = base.mark_text(align="left", dx=8, dy=-6, fontSize=12, fontWeight=500).encode(text="step:N")
    first = name.transform_filter("datum.epoch === 1")
    return finished(alt.layer(line, first), 220, "Training loss by epoch, one line for each training step.")


def accuracy_curves(curves: Mapping[str, Row], levels: Mapping[str, float] | None = None) -> Spec:
    """Draw how accurate students were along their trainings, by their steps.

    Args:
        curves: by name; `step`, counted from 0, and `accuracy`.
        levels: accuracies to compare with, by name, drawn across.
    """
    import altair as alt

    levels, ends = levels or {}, [curve["step"][-1] for curve in curves.values()]
    marks = [
        {"name": name, "step": step, "value": accuracy, "steps": f"{step:,}", "accuracy": format_fraction(accuracy)}
        for name, curve in curves.items()
        for step, accuracy in zip(curve["step"], curve["accuracy"], strict=True)
    ]
    hues = ["var(--accent)"] if len(curves) == 1 else [HUES[i % len(HUES)] for i in range(len(curves))]
    top = max([*(mark["value"] for mark in marks), *levels.values()])
    y = alt.Y(
        "value:Q",
        title="accuracy",
        scale=alt.Scale(domain=[0, min(1, 1.1 * top)], nice=False),
        axis=alt.Axis(labelExpr="format(datum.value, '.0%')", tickCount=6),
    )
    x = alt.X(
        "step:Q",
        title="steps of the student",
        scale=alt.Scale(domain=[0, 1.02 * max(ends)], nice=False),
        axis=alt.Axis(format=",d", grid=False, tickCount=6),
    )
    legend = alt.Legend(orient="top", title=None, labelLimit=0, symbolOpacity=1, labelColor="var(--ink)")
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=list(curves), range=hues),
        sort=None,
        legend=legend if len(curves) > 1 else None,
    )
    line = (
        alt.Chart(alt.InlineData(values=marks))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28, filled=True))
        .encode(x=x, y=y, color=colour, tooltip=tooltip("name", "steps", "accuracy"))
    )
    across = alt.Chart(
        alt.InlineData(values=[{"name": f"{name}, {format_fraction(at)}", "value": at} for name, at in levels.items()])
    )
    rules = across.mark_rule(strokeDash=[4, 3], color="var(--muted)").encode(y=y)
    names = across.mark_text(align="left", dx=4, dy=-7, fontSize=12, color="var(--muted)").encode(
        y=y, x=alt.value(0), text="name:N"
    )
    return finished(alt.layer(line, rules, names), 260, "Accuracy on the test images by the student's steps.")
