"""Runs side by side: the front, by hand and against a slow one, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.comparison import _relative, compare, pareto, write_comparison
from edgewise.errors import RunFolderError
from run_examples import good, leave, poor

Point = dict[str, float | None]


def point(accuracy: float | None, file_bytes: float | None, latency_s: float | None) -> Point:
    return {"accuracy": accuracy, "file_bytes": file_bytes, "latency_s": latency_s}


# -- the front ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([point(0.5, 10, 1.0)], [True]),
        ([point(0.9, 10, 1.0), point(0.8, 10, 1.0)], [True, False]),
        ([point(0.9, 10, 1.0), point(0.9, 11, 1.0)], [True, False]),
        ([point(0.9, 10, 1.0), point(0.9, 10, 1.1)], [True, False]),
        ([point(0.9, 10, 1.0), point(0.8, 9, 1.0), point(0.7, 20, 0.5)], [True, True, True]),
        ([point(0.9, 10, 1.0), point(0.9, 10, 1.0)], [True, True]),  # equal ones do not beat each other
        ([point(0.9, 10, None), point(0.9, 10, 1.0)], [False, True]),  # what was not measured is not claimed
        ([point(0.9, 10, None), point(0.8, 20, None)], [True, False]),
        ([point(0.9, 9, None), point(0.9, 10, 1.0)], [True, True]),
        ([point(None, 1, 0.1), point(0.5, 10, 1.0)], [False, True]),
        ([point(None, None, None)], [False]),
    ],
)
def test_the_front_by_hand(points: list[Point], front: list[bool]) -> None:
    assert pareto(points) == front


values = st.one_of(st.none(), st.integers(0, 4).map(float))
anything = st.lists(st.builds(point, values, values, values), max_size=8)


def beats(a: Point, b: Point) -> bool:
    """Say whether a is nowhere worse than b and somewhere better, figure by figure."""
    pairs = []
    for key, sign in (("accuracy", -1), ("file_bytes", 1), ("latency_s", 1)):
        x, y = a[key], b[key]
        pairs.append((float("inf") if x is None else sign * x, float("inf") if y is None else sign * y))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(anything)
def test_the_front_against_a_slow_one(points: list[Point]) -> None:
    slow = [p["accuracy"] is not None and not any(beats(q, p) for q in points) for p in points]
    assert pareto(points) == slow


@given(anything)
def test_whoever_is_not_on_the_front_is_beaten_from_it(points: list[Point]) -> None:
    front = [p for p, on in zip(points, pareto(points), strict=True) if on]
    for p, on in zip(points, pareto(points), strict=True):
        if not on and p["accuracy"] is not None:
            assert any(beats(q, p) for q in front)


@given(anything)
def test_the_front_follows_an_order(points: list[Point]) -> None:
    assert pareto(points[::-1]) == pareto(points)[::-1]


# -- the rows -------------------------------------------------------------------------------------------------------


def runs(folder: Path, *changes: dict[str, Any]) -> list[Path]:
    """Write good runs whose last rows are changed."""
    made = []
    for number, change in enumerate(changes):
        results, manifest = good()
        results["rows"][-1] |= change
        made.append(leave(folder / f"run{number}", results, manifest))
    return made


def test_a_row_holds_the_result_and_what_it_is_of_the_dense_network(tmp_path: Path) -> None:
    (row,) = compare(runs(tmp_path, {}))
    assert row["run"] == str(tmp_path / "run0")
    assert row["accuracy"] == 0.9075
    assert row["file_bytes"] == 106_840
    assert row["macs"] == 12_480_000
    assert row["size_ratio"] == pytest.approx(0.0978, abs=1e-4)
    assert row["dense"]["file_bytes"] == 1_092_310
    assert row["budget_met"] is True
    assert row["measured"] == "onnxruntime 1.31.1, 1 thread, AMD EPYC 7B13"
    assert row["pareto"] is True
    json.dumps(row, allow_nan=False)


def test_rows_keep_the_order_and_the_front_is_marked(tmp_path: Path) -> None:
    rows = compare(runs(tmp_path, {"accuracy": 0.90}, {"accuracy": 0.91}, {"accuracy": 0.89, "file_bytes": 90_000}))
    assert [row["accuracy"] for row in rows] == [0.90, 0.91, 0.89]
    assert [row["pareto"] for row in rows] == [False, True, True]


def test_a_run_that_its_own_dense_network_beats_is_on_no_front(tmp_path: Path) -> None:
    (row,) = compare([leave(tmp_path / "poor", *poor())])
    assert row["pareto"] is False
    assert row["budget_met"] is False


def test_runs_on_other_data_have_their_own_front(tmp_path: Path) -> None:
    results, manifest = good()
    results |= {"data": "cifar10", "budget": None, "measurements": []}
    results["rows"][-1] |= {"accuracy": 0.5, "latency_s": None}
    other = leave(tmp_path / "other", results, manifest)
    rows = compare([other, *runs(tmp_path, {})])
    assert [row["pareto"] for row in rows] == [True, True]
    assert rows[0]["budget_met"] is None
    assert rows[0]["measured"] is None


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"nothing.results\.json: missing; no such folder"):
        compare([tmp_path / "nothing"])


# -- the page -------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_run_and_its_dense_network(tmp_path: Path) -> None:
    folders = runs(tmp_path, {}, {"accuracy": 0.89, "file_bytes": 200_000})
    path = write_comparison(folders, tmp_path / "comparison.html")
    html = path.read_text(encoding="utf-8")
    assert len(html.encode()) <= 1_500_000
    assert html == write_comparison(folders, path).read_text(encoding="utf-8")
    table = html.partition("<table>")[2].partition("</table>")[0]
    assert table.count('<tr class="dense">') == 1
    assert table.count(">front<") == 1 + 1  # the column's name, and the better run
    assert table.count(">beaten<") == 1
    assert all(str(folder) in table for folder in folders)


def test_latencies_measured_differently_are_named(tmp_path: Path) -> None:
    results, manifest = good()
    for measurement in results["measurements"]:
        measurement["threads"] = 2
    folders = [*runs(tmp_path, {}), leave(tmp_path / "two", results, manifest)]
    html = write_comparison(folders, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "Latencies measured under different conditions" in html
    assert "onnxruntime 1.31.1, 2 threads, AMD EPYC 7B13" in html


def test_different_data_are_set_apart(tmp_path: Path) -> None:
    results, manifest = good()
    results["data"] = "folder:<b>mine</b>"
    folders = [*runs(tmp_path, {}), leave(tmp_path / "two", results, manifest)]
    html = write_comparison(folders, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "are not to be compared, so each has its own front" in html
    assert html.count('<div class="table"') == 2
    assert "<b>mine" not in html


def test_runs_in_series_are_told_apart_by_their_names(tmp_path: Path) -> None:
    folders = runs(tmp_path, {}, {"accuracy": 0.89, "nonzero": 1000}, {"accuracy": 0.5, "nonzero": 500})
    series = {folder: "first" if number == 0 else "sparse" for number, folder in enumerate(folders)}
    path = write_comparison(folders, tmp_path / "comparison.html", series=series, title="<i>mine</i>")
    html = path.read_text(encoding="utf-8")
    assert "&lt;i&gt;mine" in html
    table = html.partition("<table>")[2].partition("</table>")[0]
    assert ">run1<" in table
    assert str(tmp_path) not in table
    assert ">nonzero<" in table
    assert html.count('value="nonzero"') == 1
    plain = write_comparison(folders[:1], path).read_text(encoding="utf-8")
    assert ">nonzero<" not in plain
    assert "runs of one kind are joined" not in plain


def test_latencies_of_series_are_shares_of_their_own_dense_networks(tmp_path: Path) -> None:
    """The second run's machine was busy: twice the latency, and of the same dense network's too."""
    folders = []
    for number, times in enumerate((1, 2)):
        results, manifest = good()
        results["rows"][0]["latency_s"] *= times
        results["rows"][-1]["latency_s"] *= times
        folders.append(leave(tmp_path / f"run{number}", results, manifest))
    rows = compare(folders)
    assert [row["pareto"] for row in rows] == [True, False]
    first, second = _relative(rows)
    assert first["latency_ratio"] == second["latency_ratio"] == pytest.approx(1 / rows[0]["speedup"])
    assert first["pareto"]
    assert second["pareto"]
    assert second["latency_s"] == 2 * first["latency_s"]  # as measured
    slower = {**rows[0], "latency_s": 1.1 * rows[0]["latency_s"]}
    unknown = {**rows[0], "latency_s": None}
    assert [row["pareto"] for row in _relative([slower, unknown, rows[1]])] == [False, False, True]


def test_a_browser_draws_series(tmp_path: Path) -> None:
    import browser

    if browser.find() is None:
        pytest.skip(f"no Chromium on the path ({', '.join(browser.NAMES)}), so no comparison was opened in a browser")
    folders = runs(tmp_path, {}, {"accuracy": 0.89, "nonzero": 1000}, {"accuracy": 0.5, "nonzero": 500})
    series = {folder: "first" if number == 0 else "sparse" for number, folder in enumerate(folders)}
    path = write_comparison(folders, tmp_path / "comparison.html", series=series)
    with browser.browser() as page:
        page.open(path)
        page.wait("document.querySelectorAll('.chart svg .mark-symbol.role-mark path').length >= 4")  # 3, and the front
        legend = "[...document.querySelectorAll('.chart svg .role-legend-label text')].map(e => e.textContent)"
        assert page.evaluate(legend) == ["first", "sparse"]
        page.evaluate("document.querySelector('[value=nonzero]').click()")
        page.wait("document.querySelectorAll('.chart svg .mark-line path').length === 2")
        assert page.complaints == []


def test_a_browser_draws_the_comparison(tmp_path: Path) -> None:
    import browser

    if browser.find() is None:
        pytest.skip(f"no Chromium on the path ({', '.join(browser.NAMES)}), so no comparison was opened in a browser")
    folders = runs(tmp_path, {}, {"accuracy": 0.89, "latency_s": None}, {"file_bytes": None})
    path = write_comparison(folders, tmp_path / "comparison.html")
    with browser.browser() as page:
        page.open(path)
        page.wait("document.querySelectorAll('.chart svg .mark-symbol path').length === 5")  # one has no latency
        page.evaluate("document.querySelector('[value=macs]').click()")
        page.wait("document.querySelectorAll('.chart svg .mark-symbol path').length === 6")
        assert page.complaints == []
        assert page.requests == [path.resolve().as_uri()]
