"""Layers on their own in ONNX Runtime, and the table that keeps their seconds."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edgewise.devices import local, table
from edgewise.devices.layers import _seconds, time_layers
from edgewise.devices.table import measure_layers
from edgewise.errors import MeasurementFailed, UserError
from edgewise.graph.trace import LayerShape

ONE = {"size": (8, 8), "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
SHAPES = [
    LayerShape("convolution", groups=1, inputs=16, outputs=32, **ONE),
    LayerShape("convolution", groups=4, inputs=16, outputs=32, **ONE),
    LayerShape("convolution", groups=0, inputs=16, outputs=16, **ONE),
    LayerShape("transposed", groups=1, inputs=16, outputs=8, **ONE),
    LayerShape("linear", (10,), (), (), (), (), 1, 64, 24),
]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_every_kind_of_layer_is_measured(tmp_path: Path, precision: str) -> None:
    shapes = SHAPES if precision == "float32" else [s for s in SHAPES if s.kind != "transposed"]
    found = measure_layers(shapes, tmp_path, precision=precision)
    assert found.keys() == set(shapes)
    assert all(seconds > 0 for seconds in found.values())


def test_a_table_is_kept_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = table.ask_worker
    monkeypatch.setattr(table, "ask_worker", lambda request: asked.append(request["files"]) or ask(request))
    first = measure_layers(SHAPES[:2], tmp_path)
    again = measure_layers(SHAPES[:3], tmp_path)
    assert [len(file) for files in asked for file in files] == [2, 1]
    assert {shape: again[shape] for shape in SHAPES[:2]} == first
    (path,) = tmp_path.iterdir()
    about = json.loads(path.read_text())["about"]
    assert about["threads"] == 1
    assert {"machine", "cpu", "cpu_flags", "onnxruntime", "precision"} <= set(about)


def test_another_machines_table_is_never_used(tmp_path: Path) -> None:
    measure_layers(SHAPES[:1], tmp_path)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    content["about"]["cpu"] = "another"
    content["layers"][0][1] = 123.0
    path.write_text(json.dumps(content))
    assert measure_layers(SHAPES[:1], tmp_path)[SHAPES[0]] < 1
    path.write_text("{half a table")
    assert measure_layers(SHAPES[:1], tmp_path)[SHAPES[0]] < 1


def test_two_boards_of_one_architecture_are_two_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARM processors have no model name; boards differ in parts, in what they call themselves, or in their number."""
    board, number = tmp_path / "model", tmp_path / "machine-id"
    monkeypatch.setattr(local, "BOARD", board)
    monkeypatch.setattr(local, "MACHINE_ID", number)
    keys = set()
    for name, part, identity in (("A Board 4", "0xd08", "1"), ("A Board 5", "0xd0b", "1"), ("A Board 4", "0xd08", "2")):
        board.write_bytes(name.encode() + b"\0")
        number.write_text(identity + "\n")
        monkeypatch.setattr(local, "_cpuinfo", lambda part=part: {"CPU part": part, "Features": "asimd"})
        local.machine_key.cache_clear()
        local.cpu_name.cache_clear()
        keys.add(local.machine_key())
        assert local.cpu_name() == name
    assert len(keys) == 3
    monkeypatch.undo()
    local.machine_key.cache_clear()
    local.cpu_name.cache_clear()


def test_a_layer_without_a_kernel_is_no_layer_without_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.devices.layers._seconds", lambda profile, count: [1e-6] * (count - 1) + [0.0])
    with pytest.raises(MeasurementFailed, match=r"no kernel of this layer in float32: \{'kind': 'linear'"):
        time_layers([asdict(shape) for shape in (SHAPES[0], SHAPES[-1])], "float32", 1)


def test_threads_that_the_machine_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threads = 999: this machine has"):
        measure_layers(SHAPES[:1], tmp_path, threads=999)


def test_a_profile_by_hand() -> None:
    def event(name: str, op: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": op}}

    one = [event("L0.y_nchwc", "Conv", 10), event("fused L1.y", "FusedGemm", 7), event("L1.r", "Relu", 2)]
    moving = [event("L0.q_token_3", "Transpose", 50), event("ReorderOutput", "ReorderOutput", 50)]
    slow = [event("L0.y_nchwc", "Conv", 900), event("fused L1.y", "FusedGemm", 900), event("L1.r", "Relu", 900)]
    other = [{"cat": "Session", "name": "model_run", "dur": 1}]
    assert _seconds(slow + one * 3 + moving + other, 2) == pytest.approx([10e-6, 9e-6])
