"""The report's charts, as Vega-Lite specifications made with Altair.

Colours are the page's CSS variables, so one drawing serves light, dark and paper. Where the reader may choose what is
drawn, every mark says of which quantity it is (`of`), and the parameter `quantity` picks. Texts are formatted here;
what comes from the user is data, never part of an expression.
"""

from edgewise.charts.base import COST, LAYER_COST, RELATIVE, Row, Spec, vega_script
from edgewise.charts.layers import array_bars, exclusion_curve, layer_bars, sensitivity_curves
from edgewise.charts.timing import (
    STRIP_SAMPLES,
    accuracy_curves,
    latency_strips,
    quantiles,
    reach,
    training_curves,
)
from edgewise.charts.tradeoff import Point, families, known_costs, plane

__all__ = [
    "COST",
    "LAYER_COST",
    "RELATIVE",
    "STRIP_SAMPLES",
    "Point",
    "Row",
    "Spec",
    "accuracy_curves",
    "array_bars",
    "exclusion_curve",
    "families",
    "known_costs",
    "latency_strips",
    "layer_bars",
    "plane",
    "quantiles",
    "reach",
    "sensitivity_curves",
    "training_curves",
    "vega_script",
]
