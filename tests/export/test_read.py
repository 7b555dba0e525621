"""ONNX files of other hands: older opsets mean what they meant."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from edgewise.errors import ModelError
from edgewise.export.read import OPSET, allow_codes_, read
from edgewise.export.verify import outputs, rms_error
from edgewise.models.onnx import OnnxNetwork
from edgewise.quantize import Quantizer
from edgewise.quantize.schemes import SCHEMES

RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal((8, 3, 3, 3)).astype(np.float32)
LAST = RNG.standard_normal((8, 8, 1, 1)).astype(np.float32)
BODIES = {  # each means something else, or is written otherwise, in the present opset
    11: "c = Conv(x, w) s = Softmax<axis = 2>(c) y = Conv(s, v)",
    12: "c = Conv(x, w) m = ReduceSum<axes = [1], keepdims = 1>(c) d = Sub(c, m) y = Conv(d, v)",
    10: "c = Conv(x, w) k = Clip<min = 0.0, max = 6.0>(c) y = Conv(k, v)",
}


def write(path: Path, opset: int, body: str) -> Path:
    text = (
        f'<ir_version: 7, opset_import: ["" : {opset}]> g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) {{ {body} }}'
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (("w", FIRST), ("v", LAST)))
    onnx.save(proto, path)
    return path


def images() -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal((16, 3, 8, 8), dtype=np.float32))


@pytest.mark.parametrize("opset", BODIES)
def test_an_older_opset_computes_what_it_did(opset: int, tmp_path: Path) -> None:
    path, x = write(tmp_path / "old.onnx", opset, BODIES[opset]), images()
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    with torch.no_grad():
        found = OnnxNetwork(read(path).graph)(x)
    assert read(path).graph.opset_imports[""] == OPSET
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", BODIES)
@pytest.mark.parametrize("scheme", ["int8_static", "int4_weight", "float16"])
def test_an_older_opset_is_quantised_in_its_meaning(scheme: str, opset: int, tmp_path: Path) -> None:
    path, x = write(tmp_path / "old.onnx", opset, BODIES[opset]), images()
    made = SCHEMES[scheme].write(Quantizer(path, x), tmp_path / "new.onnx")
    onnx.checker.check_model(onnx.load(made), full_check=True)
    assert rms_error(outputs(made, x), outputs(path, x)) < (0.3 if scheme == "int4_weight" else 0.2)


def test_four_bits_are_refused_where_they_would_change_an_operator(tmp_path: Path) -> None:
    body = "c = Conv(x, w) n = GroupNormalization<num_groups = 2>(c, s, s) y = Conv(n, v)"
    path = write(tmp_path / "groups.onnx", 18, body)
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "s"))
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="4-bit codes need opset 21, where GroupNormalization has other scales"):
        allow_codes_(read(path).graph, 4)
