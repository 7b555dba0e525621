"""The compacted file gives the same bits, and holds nothing that can go."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgewise.export.compact import compact_, write
from edgewise.export.quiet import quietly
from export.nets import images, tiny_net


def verbose() -> onnx.ModelProto:
    """``y = relu(x @ a + b) @ c + b``: equal constants, a dead operator, a Constant, long names, all metadata."""
    a = np.arange(9, dtype=np.float32).reshape(3, 3) - 4
    b = np.asarray([0.5, -1.0, 2.0], dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "first.weight"], ["first.product"], name="first", doc_string="why"),
            helper.make_node("Add", ["first.product", "first.bias"], ["first.sum"], name="add"),
            helper.make_node("Relu", ["first.sum"], ["active"], name="relu"),
            helper.make_node("Neg", ["active"], ["never.read"], name="dead"),
            helper.make_node("Constant", [], ["second.weight"], value=numpy_helper.from_array(a * 2)),
            helper.make_node("MatMul", ["active", "second.weight"], ["second.product"], name="second"),
            helper.make_node("Add", ["second.product", "second.bias"], ["logits"], name="last"),
        ],
        "a graph with a long name",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(a, "first.weight"),
            numpy_helper.from_array(b, "first.bias"),
            numpy_helper.from_array(b.copy(), "second.bias"),
            numpy_helper.from_array(b * 3, "never.read.either"),
        ],
        doc_string="documented",
        value_info=[helper.make_tensor_value_info("active", TensorProto.FLOAT, ["batch", 3])],
    )
    for item in (*graph.node, *graph.input):
        item.metadata_props.add(key="origin", value="a line of Python")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("unused", 1)])
    model.metadata_props.add(key="tool", value="some exporter")
    model.producer_version = "1.2.3"
    model.ir_version = 10
    return model


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def test_by_hand(tmp_path: Path) -> None:
    path = write(ir.from_proto(verbose()), tmp_path / "small.onnx")
    small = onnx.load(path)
    onnx.checker.check_model(small, full_check=True)
    assert [(node.op_type, list(node.input), list(node.output)) for node in small.graph.node] == [
        ("MatMul", ["input", "a"], ["d"]),
        ("Add", ["d", "b"], ["e"]),
        ("Relu", ["e"], ["f"]),
        ("MatMul", ["f", "c"], ["g"]),
        ("Add", ["g", "b"], ["logits"]),
    ]
    assert [constant.name for constant in small.graph.initializer] == ["a", "b", "c"]
    assert not any(node.name or node.doc_string or node.metadata_props for node in small.graph.node)
    assert not any((small.graph.value_info, small.graph.doc_string, small.metadata_props, small.producer_version))
    assert not small.graph.input[0].metadata_props
    assert [item.domain for item in small.opset_import] == [""]
    x = np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)
    assert np.array_equal(run(path.read_bytes(), x), run(verbose().SerializeToString(), x))


def test_an_exporters_file_keeps_every_bit_of_its_outputs(tmp_path: Path) -> None:
    with quietly():
        program = torch.onnx.export(tiny_net().eval(), (images(2),), dynamo=True, input_names=["input"])
    before = program.model_proto.SerializeToString()
    after = write(program.model, tmp_path / "small.onnx").read_bytes()
    x = images(2, seed=9).numpy()
    assert np.array_equal(run(after, x), run(before, x))
    assert len(after) < 0.5 * len(before)  # the network is tiny, what went is not


def test_compacting_twice_changes_nothing(tmp_path: Path) -> None:
    once = write(ir.from_proto(verbose()), tmp_path / "once.onnx")
    twice = write(ir.load(once), tmp_path / "twice.onnx")
    assert twice.read_bytes() == once.read_bytes()


def test_constants_that_differ_in_type_sign_or_shape_stay_apart() -> None:
    zeros = [np.zeros(2, np.float32), -np.zeros(2, np.float32), np.zeros((1, 2), np.float32), np.zeros(2, np.int32)]
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"zero{i}"], [f"out{i}"]) for i in range(4)],
        "g",
        [],
        [
            helper.make_tensor_value_info(f"out{i}", helper.np_dtype_to_tensor_dtype(z.dtype), z.shape)
            for i, z in enumerate(zeros)
        ],
        [numpy_helper.from_array(z, f"zero{i}") for i, z in enumerate(zeros)],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    compact_(model)
    assert len(model.graph.initializers) == 4


def test_names_of_inputs_and_outputs_are_not_given_twice() -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[2] a) => (float[2] c) { t = Neg(a) u = Abs(t) c = Relu(u) }'
    )
    model = ir.from_proto(graph)
    compact_(model)
    assert [value.name for node in model.graph for value in node.outputs] == ["b", "d", "c"]


@pytest.mark.parametrize("position", [0, 51, 52, 52 + 52 * 52])
def test_names_are_letters_and_as_short_as_there_are(position: int) -> None:
    from itertools import islice

    from edgewise.export.compact import _names

    name = next(islice(_names(), position, None))
    assert {0: "a", 51: "Z", 52: "aa", 52 + 52 * 52: "aaa"}[position] == name
