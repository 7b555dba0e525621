"""The charts: what they are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgewise import charts
from edgewise.charts import Point, base, timing, tradeoff
from edgewise.charts.layers import _gathered, _layer_mark
from run_examples import good, resnet_layers


def marks(spec: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the data of a specification whose rows have a key."""
    return next(rows for rows in spec["datasets"].values() if rows and key in rows[0])


def network(name: str, accuracy: float | None, **costs: float | None) -> Point:
    return Point(name, name, "run", "step", accuracy, costs)


# -- accuracy against cost ------------------------------------------------------------------------------------------


def test_only_known_costs_can_be_chosen() -> None:
    points = [network("a", 0.9, macs=10.0, file_bytes=None), network("b", None, latency_s=0.1)]
    assert charts.known_costs(points) == {"macs": "MACs"}


def test_areas_are_in_proportion_to_the_files() -> None:
    points = [network("big", 0.9, file_bytes=800.0), network("small", 0.5, file_bytes=200.0)]
    big, small = marks(charts.plane(points, {}, ""), "area")
    assert big["area"] == 4 * small["area"] == tradeoff.BUBBLE_AREA
    assert big["radius"] == 25


def test_a_network_without_a_file_is_hollow_and_without_the_cost_is_left_out() -> None:
    points = [network("a", 0.9, macs=10.0, file_bytes=None), network("b", 0.8, macs=None), network("c", None, macs=5.0)]
    (mark,) = marks(charts.plane(points, {}, ""), "area")
    assert (mark["network"], mark["file_known"], mark["file"]) == ("a", False, "–")


def test_labels_that_would_cover_each_other_are_joined_above_the_largest() -> None:
    points = [
        network("a", 0.900, macs=100.0, file_bytes=None),
        network("b", 0.9001, macs=101.0, file_bytes=500.0),
        network("far", 0.5, macs=10.0),
    ]
    found = marks(charts.plane(points, {}, ""), "area")
    labels = {mark["network"]: mark["label"] for mark in found if mark["of"] == "macs"}
    assert labels == {"a": "", "b": "a · b", "far": "far"}


def test_many_joined_labels_name_the_first_and_the_last() -> None:
    points = [network(name, 0.9, macs=100.0) for name in "abcd"]
    assert [mark["label"] for mark in marks(charts.plane(points, {}, ""), "area")] == ["a … d", "", "", ""]


def test_a_small_difference_of_accuracy_does_not_look_like_a_cliff() -> None:
    view = tradeoff._view([network("a", 0.901, macs=1.0), network("b", 0.9, macs=2.0)], {}, "macs")
    assert view.top - view.bottom > base.LEAST_SPAN
    assert view.right > 2.0


def test_the_budget_is_always_within_the_axes() -> None:
    limits = {"accuracy": 0.8, "macs": 50.0}
    view = tradeoff._view([network("a", 0.9, macs=1.0)], limits, "macs")
    assert view.bottom < 0.8
    assert view.right > 50.0
    assert tradeoff._corners(limits, {"macs": view}) == [
        {"of": "macs", "x": 0, "right": 50.0, "y": 0.8, "top": view.top},
    ]
    assert tradeoff._corners({"macs": 50.0}, {"params": view}) == []


def test_nonzero_can_be_chosen_where_something_is_sparse() -> None:
    whole, sparse = network("a", 0.9, params=10.0, nonzero=10.0), network("b", 0.9, params=10.0, nonzero=4.0)
    assert charts.known_costs([whole]) == {"params": "params"}
    assert charts.known_costs([whole, sparse]) == {"params": "params", "nonzero": "nonzero"}


def test_every_point_of_a_family_is_drawn_in_its_series() -> None:
    points = [
        Point(
            f"{model} {name}",
            "",
            f"{model} {name}",
            role,
            0.9 - 0.1 * step,
            {"macs": 10.0 * step, "latency_ratio": 1.0},
            name,
            model,
        )
        for model in ("Tiny", "Small")
        for step in (1, 2)
        for name, role in (("HESSO", "result"), ("random", "beaten"))
    ]
    spec = charts.families([*points, Point("x", "", "x", "beaten", None, {"macs": 1.0}, "none", "Tiny")], "")
    drawn = marks(spec, "series")
    assert len(drawn) == 2 * 8
    assert {(mark["series"], mark["front"]) for mark in drawn} == {("HESSO", True), ("random", False)}
    lines, dots, front = spec["layer"]
    colour, shape = dots["encoding"]["color"], dots["encoding"]["shape"]
    assert colour["scale"]["domain"] == ["HESSO", "random"]
    assert len(set(colour["scale"]["range"])) == 2
    assert shape["scale"]["domain"] == ["Tiny", "Small"]
    assert lines["encoding"]["detail"]["field"] == "line"  # of one model: lines of one colour are not joined
    assert "datum.front" in str(front["transform"])
    alone = charts.families(points[:2], "")
    assert alone["layer"][1]["encoding"]["shape"]["legend"] is None  # one model needs no key


def test_a_wide_cost_of_a_family_has_a_logarithmic_axis_and_the_one_asked_for_comes_first() -> None:
    """Of 1,000, 100 and 10 weights: a step of one on the axis each; MACs of 2 to 6 are drawn as they are."""
    points = [
        Point(str(left), "", "all", "result", 0.5 + left / 2000, {"nonzero": left, "params": 1000.0, "macs": macs}, "a")
        for left, macs in ((1000.0, 6.0), (100.0, 4.0), (10.0, 2.0))
    ]
    spec = charts.families(points, "", "nonzero")
    assert spec["params"][0]["value"] == "nonzero"
    drawn = {of: [mark["x"] for mark in marks(spec, "series") if mark["of"] == of] for of in ("nonzero", "macs")}
    assert drawn["nonzero"] == pytest.approx([3.0, 2.0, 1.0])
    assert drawn["macs"] == [6.0, 4.0, 2.0]
    axis = spec["layer"][1]["encoding"]["x"]
    assert 'indexOf(["nonzero"]' in axis["axis"]["labelExpr"].replace("indexof", "indexOf")
    assert '"macs": [0, ' in str(axis["scale"]["domain"])


# -- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", charts.LAYER_COST)
def test_gathering_small_layers_loses_nothing(column: str) -> None:
    layers = resnet_layers(blocks=9)
    gathered = _gathered(layers)
    assert len(gathered) < len(layers)
    assert gathered[-1]["name"] == f"{len(layers) - len(gathered) + 1} small layers"
    for when in ("before", "after"):
        assert sum(x[when][column] for x in gathered) == sum(x[when][column] for x in layers)


def test_layers_keep_their_order_and_few_layers_stay_as_they_are() -> None:
    layers = resnet_layers()
    names = [layer["name"] for layer in layers]
    kept = [layer["name"] for layer in _gathered(layers)[:-1]]
    assert kept == [name for name in names if name in set(kept)]
    assert _gathered(layers[:3]) == layers[:3]


@pytest.mark.parametrize(("was", "now", "kept"), [(10, 4, "40%"), (10, 0, "gone"), (0, 4, "new"), (0, 0, "")])
def test_the_share_that_was_kept(was: int, now: int, kept: str) -> None:
    costs = {when: dict.fromkeys(charts.LAYER_COST, value) for when, value in (("before", was), ("after", now))}
    assert _layer_mark({"name": "", "kind": "convolution", **costs}, "macs")["kept"] == kept


# -- latency and training -------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_numpy() -> None:
    for count in (1, 2, 3, 4, 7, 100):
        samples = np.random.default_rng(count).exponential(size=count).tolist()
        found = charts.quantiles(samples)
        assert list(found.values()) == pytest.approx(np.quantile(samples, [0, 0.25, 0.5, 0.75, 1]).tolist())


def test_stragglers_do_not_flatten_the_axis() -> None:
    assert charts.reach([[1.0, 1.0, 1.0, 50.0]]) == pytest.approx(1.05 * 2 * 13.25)
    assert charts.reach([[1.0] * 99 + [50.0], [2.0]]) == pytest.approx(1.05 * 2 * 2.0)
    assert charts.reach([[1.0, 1.1]]) == pytest.approx(1.05 * 1.1)


def test_a_strip_draws_a_part_of_many_samples() -> None:
    for count in (1, 299, 300, 301, 5000):
        drawn = timing._strip("dense", [0.1] * count, 1.0)
        assert min(count, 150) < len(drawn) + 1 <= charts.STRIP_SAMPLES + 1
        assert all(0.5 <= dot["place"] <= 0.9 for dot in drawn)
    assert timing._strip("dense", [0.1, 2.0], 1.0)[0]["sample"] == "100 ms"
    assert len(timing._strip("dense", [0.1, 2.0], 1.0)) == 1


def test_epochs_of_later_steps_follow_those_before() -> None:
    found = marks(charts.training_curves(good()[0]["curves"]), "loss")
    assert [mark["at"] for mark in found] == list(range(1, 15))
    assert found[8] == {"step": "03-train", "at": 9, "epoch": 1, "value": 0.74, "loss": "0.74"}


def test_students_are_drawn_by_their_steps_beside_what_they_are_compared_with() -> None:
    curves = {
        "taught": {"step": [0, 1500], "accuracy": [0.1, 0.6]},
        "alone": {"step": [0, 900], "accuracy": [0.1, 0.3]},
    }
    spec = charts.accuracy_curves(curves, {"with data": 0.7})
    found = marks(spec, "steps")
    assert [(mark["name"], mark["steps"], mark["accuracy"]) for mark in found] == [
        ("taught", "0", "10.00%"),
        ("taught", "1,500", "60.00%"),
        ("alone", "0", "10.00%"),
        ("alone", "900", "30.00%"),
    ]
    assert "with data, 70.00%" in json.dumps(spec)


def test_the_script_draws_charts_and_cannot_end_its_element() -> None:
    script = charts.vega_script()
    assert "vegaEmbed" in script
    assert "</script" not in script
