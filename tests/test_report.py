"""report.html: what it says, that it needs nothing else, and that a browser draws it."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import browser
from edgewise import report
from edgewise.budget import COLUMNS, Limits
from edgewise.errors import RunFolderError
from run_examples import good, large, leave, poor, unmeasured

RUNS = {"good": good, "poor": poor, "unmeasured": unmeasured, "large": large}
NO_TEXT = {"script", "style"}


class Reader(HTMLParser):
    """Collects a page's elements, its visible text, and the contents of its scripts and code blocks."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.code = "", [""], [""]
        self._inside: list[str] = []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "code":
            self.code.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
        if "code" in self._inside:
            self.code[-1] += data
        if not NO_TEXT & set(self._inside):
            self.text += f" {data}"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def specs(self) -> dict[str, Any]:
        ids = [attrs.get("id") or "" for name, attrs in self.elements if name == "script"]
        return {i.removeprefix("spec-"): json.loads(s) for i, s in zip(ids, self.scripts[1:], strict=True) if i}


def read(run: tuple[dict[str, Any], dict[str, Any]]) -> Reader:
    return Reader(report.render(*run))


# -- one file, the same every time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_the_report_is_one_small_file_that_loads_nothing(name: str) -> None:
    html = report.render(*RUNS[name]())
    assert len(html.encode()) <= 1_500_000
    assert "default-src 'none'" in html
    links = {attrs.get(key) for _, attrs in Reader(html).elements for key in ("src", "href", "action", "data")} - {None}
    assert all(link.startswith(("#", "data:")) for link in links if link)
    styles = "".join(re.findall(r"<style>.*?</style>", html, re.S))
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_same_results_give_the_same_bytes() -> None:
    first = report.render(*good())
    report.render(*poor())  # Altair counts what it names; no count may show
    assert report.render(*copy.deepcopy(good())) == first


def test_the_fingerprints_of_files_have_no_part_in_the_report() -> None:
    results, manifest = good()
    bare = {key: value for key, value in manifest.items() if key not in ("files", "seal")}
    assert report.render(results, bare) == report.render(results, {**manifest, "seal": "ab"})


def test_the_report_is_imported_without_what_draws_it() -> None:
    code = (
        "import sys, edgewise.report; print({'altair', 'jinja2', 'vl_convert', 'torch', 'numpy'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# -- what it says ---------------------------------------------------------------------------------------------------


def test_the_headline_says_what_was_gained_and_lost() -> None:
    assert report.headline(good()[0]) == "ResNet-20 on fashion-mnist: 10.2× smaller, 2.5× faster, −0.30 points"
    assert re.fullmatch(r".*: 1\.20× larger, 1\.3\d× slower, −3\.95 points", report.headline(poor()[0]))


def test_without_an_artifact_the_headline_counts_params_and_macs() -> None:
    assert report.headline(unmeasured()[0]).endswith(": 2.3× fewer params, 2.5× fewer MACs")


@pytest.mark.parametrize(
    ("drop_pt", "size_ratio", "speedup", "said"),
    [
        (0.0, 1.0, 1.0, "same size, same speed, 0.00 points"),
        (-0.26, 0.5, 0.5, "2.0× smaller, 2.0× slower, +0.26 points"),
        (None, 0.001, 400.0, "1000× smaller, 400× faster"),
    ],
)
def test_the_headline_by_hand(drop_pt: float | None, size_ratio: float, speedup: float, said: str) -> None:
    results, _ = good()
    results["compressed"] |= {"drop_pt": drop_pt, "size_ratio": size_ratio, "speedup": speedup}
    assert report.headline(results) == f"ResNet-20 on fashion-mnist: {said}"


def test_a_good_run_is_told_with_its_figures() -> None:
    text = read(good()).text
    for said in ("Budget met:", "all 3 limits hold", "90.75%", "107 kB", "198 µs", "met drop ≤ 1 pt", "≤ 120 kB"):
        assert said in text
    assert "missed" not in text
    assert "Noisy" not in text


def test_what_went_wrong_is_said_as_plainly() -> None:
    text = read(poor()).text
    assert "Budget missed: 4 of 4 limits do not hold" in text
    assert "file: 1.31 MB, at most 120 kB wanted" in text
    assert "accuracy drop: 3.95 pt, at most 1 pt wanted" in text
    assert "peak activations: unknown, at most 64.0 kB wanted" in text
    assert "Noisy measurement: the latency of the compressed network has a spread of 31%" in text
    assert "CIFAR-10-JPEG75: not the original pixels" in text
    assert "slower" in text
    assert text.count("fails") == 1
    assert text.count("holds") == 3 + text.count("budget holds")


def test_the_dense_row_stands_first_and_each_step_beside_it() -> None:
    text = read(good()).text
    steps = text.partition("What each step paid")[2].partition("Where it went")[0]
    assert steps.index("dense float32") < steps.index("01-train") < steps.index("06-measure")
    assert "74.21% −16.84 118 k 0.44× 12.5 M 0.40×" in steps
    assert "107 kB 0.098× 198 µs 0.40× 8.20 s" in steps


def test_zeros_among_the_params_are_told() -> None:
    results, manifest = good()
    results["rows"][2]["nonzero"] = 40_000
    results["rows"][2]["effective_macs"] = 5_000_000
    text = read((results, manifest)).text
    assert "0.44×, 40.0 k not zero" in text
    assert "0.40×, 5.00 M effective" in text


def test_what_is_unknown_is_a_dash() -> None:
    page = read(unmeasured())
    assert "File – – dense –" in page.text
    assert "Latency – – dense –" in page.text
    assert "Not measured: this recipe has no measure step" in page.text
    assert "Nothing was checked" in page.text
    assert list(page.specs()) == ["plane"]
    rows = page.text.partition("What each step paid")[2].partition("How long")[0]
    assert "0.0%" not in rows
    assert " 0 " not in rows


def test_a_run_without_any_accuracy_has_no_plane() -> None:
    results, manifest = unmeasured()
    for row in results["rows"]:
        row["accuracy"] = None
    page = read((results, manifest))
    assert page.specs() == {}
    assert "What accuracy costs" not in page.text


def test_every_check_stands_with_its_error_and_limit() -> None:
    text = read(good()).text
    assert "shrunk equals silenced 02-prune 1.2e-06 0.0001 relative error holds" in text


def test_machine_versions_and_notes_are_told() -> None:
    text = read(good()).text
    for said in (
        "memory 8.34 GB",
        "training device NVIDIA H100",
        "onnxruntime 1.31.1",
        "edgewise 0.1.0",
        "sha256:3f1c",
        '02-prune : the width of "fc"',
    ):
        assert said in text


def test_every_limit_a_budget_knows_can_be_told() -> None:
    known = {owner: column for column, (*_, owner) in report.FIGURES.items()} | {"drop": "drop_pt"}
    assert known == {name: column for name, (column, *_) in COLUMNS.items()}
    assert set(known) == {field.name for field in fields(Limits)}


def test_the_budget_bounds_the_plane() -> None:
    corners = next(data for data in read(good()).specs()["plane"]["datasets"].values() if "right" in data[0])
    latency = next(corner for corner in corners if corner["of"] == "latency_s")
    assert latency["right"] == 0.00025
    assert latency["y"] == pytest.approx(0.9105 - 0.01)


# -- what users may write -------------------------------------------------------------------------------------------


def test_names_cannot_break_out_of_the_page() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"
    results, manifest = good()
    results |= {"recipe": evil, "model": evil, "data": evil, "data_note": evil, "classes": [evil, "b"]}
    for row in results["rows"]:
        row |= {"step": evil, "label": evil, "kind": evil, "notes": [evil]}
    for layer in results["layers"]:
        layer |= {"name": evil, "kind": evil}
    results["curves"] = {evil: {"epoch": [1], "loss": [0.5]}}
    for measurement in results["measurements"]:
        measurement |= {"artifact": evil, "cpu": evil}
    manifest |= {"machine": {evil: evil}, "versions": {evil: evil}, "created": evil}
    manifest["checks"] = [{**check, "name": evil, "detail": evil, "unit": evil} for check in manifest["checks"]]
    page, plain = read((results, manifest)), read(good())
    assert page.count("script") == plain.count("script")
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert evil in page.text
    assert page.specs()["curves"]["datasets"]
    assert "{{ 7 * 7 }}" in page.text


# -- how to load ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_runtime_snippet_runs_as_it_stands(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    from PIL import Image

    results, manifest = good()
    results |= {"input_shape": [channels, 4, 4], "mean": [0.25] * channels, "std": [0.5] * channels}
    results["classes"] = ["dark", "light"]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
            onnx.helper.make_node("Unsqueeze", ["mean", "one"], ["light"]),
            onnx.helper.make_node("Neg", ["light"], ["dark"]),
            onnx.helper.make_node("Concat", ["dark", "light"], ["logits"], axis=1),
        ],
        "mean",
        [value("image", onnx.TensorProto.FLOAT, ["n", channels, 4, 4])],
        [value("logits", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    leave(tmp_path / "run", results, manifest)
    (tmp_path / "results.json").write_bytes((tmp_path / "run" / "results.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    snippet = next(code for code in read((results, manifest)).code if "onnxruntime" in code)
    for grey, answer in ((40, "dark"), (90, "light")):  # the mean of the training images is 0.25: grey 64
        Image.new("RGB", (9, 7), (grey, grey, grey)).save("image.png")
        exec(compile(snippet, "snippet", "exec"), {})
        assert capsys.readouterr().out.strip() == answer


def test_the_python_snippet_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.export import network

    builder = network.Builder("resnet20", 10, 1, 28, 0.5)
    network.save(builder.build(), builder, tmp_path)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    snippet = next(code for code in read(good()).code if "edgewise.load" in code)
    exec(compile(snippet, "snippet", "exec"), found)
    assert found["logits"].shape == (1, 10)


def test_without_an_artifact_only_python_is_told() -> None:
    code = read(unmeasured()).code
    assert any("edgewise.load" in each for each in code)
    assert not any("onnxruntime" in each for each in code)


# -- written whole or not at all ------------------------------------------------------------------------------------


def test_write_leaves_the_page_and_nothing_else(tmp_path: Path) -> None:
    run = leave(tmp_path / "run", *good())
    path = report.write(run)
    assert path == run / "report.html"
    assert path.read_text(encoding="utf-8") == report.render(*good())
    assert sorted(p.name for p in run.iterdir()) == ["manifest.json", "report.html", "results.json"]


def test_write_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such folder"):
        report.write(tmp_path / "none")
    run = leave(tmp_path / "run", *good())
    (run / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match=r"manifest\.json: missing; the run is not finished"):
        report.write(run)
    (run / "results.json").write_text('{"rows": [')
    with pytest.raises(RunFolderError, match=r"results\.json: cannot be read"):
        report.write(run)
    for other in ("[1]", "{}", '{"rows": []}'):
        (run / "results.json").write_text(other)
        with pytest.raises(RunFolderError, match="holds nothing of a run"):
            report.write(run)
    with pytest.raises(RunFolderError, match="a file, not a run folder"):
        report.write(run / "results.json")
    assert not (run / "report.html").exists()


# -- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    if browser.find() is None:
        pytest.skip(f"no Chromium on the path ({', '.join(browser.NAMES)}), so no report was opened in a browser")
    with browser.browser() as opened:
        yield opened


MARKS = "[...document.querySelectorAll('#chart-{} .mark-{} > *')].filter(e => e.getBBox().height >= 0).length"


def marks(page: browser.Page, chart: str, kind: str) -> int:
    """Return how many marks of a kind a chart holds."""
    return int(page.evaluate(MARKS.format(chart, kind)))


def opened(page: browser.Page, run: tuple[dict[str, Any], dict[str, Any]], folder: Path, **how: Any) -> dict[str, Any]:
    """Open a run's report, wait for its charts, and return their specifications."""
    path = report.write(leave(folder / "run", *run))
    page.complaints.clear()
    page.requests.clear()
    page.open(path, **how)
    specs = Reader(path.read_text(encoding="utf-8")).specs()
    page.wait(f"document.querySelectorAll('.chart svg').length === {len(specs)}")
    assert page.requests == [path.resolve().as_uri()]
    return specs


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", RUNS)
def test_a_browser_draws_every_chart(name: str, width: int, page: browser.Page, tmp_path: Path) -> None:
    results, manifest = RUNS[name]()
    specs = opened(page, (results, manifest), tmp_path, width=width, dark=width == 390)
    kinds = {"plane": "symbol", "layers": "rect", "latency": "symbol", "curves": "line", "sensitivity": "symbol"}
    for chart in specs:
        assert marks(page, chart, kinds[chart]) > 0
    if "latency" in specs:
        assert marks(page, "latency", "symbol") > 500
        assert marks(page, "plane", "symbol") == 2
        assert marks(page, "layers", "rect") >= 2 * 19
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.complaints == []


def test_the_reader_chooses_what_is_drawn(page: browser.Page, tmp_path: Path) -> None:
    opened(page, good(), tmp_path)
    page.evaluate("document.querySelector('[name=plane][value=macs]').click()")
    page.wait(f"{MARKS.format('plane', 'symbol')} === 7")
    widths = "[...document.querySelectorAll('#chart-layers .mark-rect path')].map(e => e.getBBox().width).join()"
    before = page.evaluate(widths)
    page.evaluate("document.querySelector('[name=layers][value=params]').click()")
    page.wait(f"{widths} !== '{before}'")
    assert page.complaints == []


def test_pointing_at_a_bubble_tells_its_figures(page: browser.Page, tmp_path: Path) -> None:
    opened(page, good(), tmp_path)
    box = "JSON.stringify(document.querySelector('#chart-plane .mark-symbol path').getBoundingClientRect())"
    page.evaluate("document.querySelector('#chart-plane').scrollIntoView({behavior: 'instant', block: 'center'})")
    place = json.loads(page.evaluate(box))
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.wait("!document.getElementById('tip').hidden")
    told = page.evaluate("document.getElementById('tip').innerText")
    assert "91.05%" in told
    assert "1.09 MB" in told


def test_dark_and_light_differ_in_the_charts_too(page: browser.Page, tmp_path: Path) -> None:
    colour = "getComputedStyle(document.querySelector('#chart-curves .mark-line path')).stroke"
    found = set()
    for dark in (False, True):
        opened(page, good(), tmp_path / str(dark), dark=dark)
        found.add(page.evaluate(colour))
    assert len(found) == 2
    assert all(each.startswith("rgb(") for each in found)


def test_the_browser_would_tell_of_a_chart_that_fails(page: browser.Page, tmp_path: Path) -> None:
    html = report.render(*good()).replace('"type":"circle"', '"type":"nothing"')
    html = html.replace("<main>", '<main><img src="https://example.org/x.png">')
    (tmp_path / "broken.html").write_text(html, encoding="utf-8")
    page.complaints.clear()
    page.open(tmp_path / "broken.html")
    page.wait("document.querySelectorAll('.chart svg').length >= 2")
    assert any("Content Security Policy" in each for each in page.complaints)
    assert any("TypeError" in each for each in page.complaints)
    page.complaints.clear()
