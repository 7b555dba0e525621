"""Quantised files as torch's quantised operators, and as the files of other runtimes."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgewise.devices.runtimes import RUNTIMES
from edgewise.errors import MissingExtra, ModelError, UserError
from edgewise.export.edit import constant
from edgewise.export.formats import FORMATS, check_installed
from edgewise.export.lowering import Decode, DynamicCodes, Encode, Runtime, Weights, lower
from edgewise.export.onnx import export
from edgewise.export.verify import compare_formats, outputs, relative_error, rms_error
from edgewise.layout import SHIPPED
from edgewise.quantize import Quantize, Quantizer
from export.nets import images
from quantize.nets import write_everything

RUNTIMES_OF_TORCH: tuple[Runtime, ...] = ("executorch", "litert")


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    return Quantizer(write_everything(tmp_path_factory.mktemp("lowering")), images(32))


@pytest.fixture(scope="module")
def quantized(quantizer: Quantizer) -> Path:
    return quantizer.write(quantizer.path.with_name("int8.onnx"))


def lowered(path: Path, runtime: Runtime) -> nn.Module:
    return lower(ir.load(path), runtime, images(32))


def computed(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(x)
    return found


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in network.modules())


@pytest.mark.parametrize("runtime", RUNTIMES_OF_TORCH)
def test_a_float_file_stays_what_it_is(runtime: Runtime, quantizer: Quantizer) -> None:
    x = images(8, seed=4)
    assert relative_error(computed(lowered(quantizer.path, runtime), x), outputs(quantizer.path, x)) < 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES_OF_TORCH)
def test_a_quantised_file_is_rounded_alike(runtime: Runtime, quantizer: Quantizer, quantized: Path) -> None:
    """Only the products that give out floats are rounded otherwise: their input is, or in LiteRT the output as well."""
    x = images(100, seed=4)
    expected, whole = outputs(quantized, x), outputs(quantizer.path, x)
    found = computed(lowered(quantized, runtime), x)
    most = {"executorch": 0.5, "litert": 1.0}[runtime]
    assert 0 < rms_error(found, expected) < most * rms_error(expected, whole)


def test_without_products_no_code_differs(quantizer: Quantizer, tmp_path: Path) -> None:
    products = [name for name, layer in quantizer.layers.items() if layer.op_type == "Gemm"]
    path, x = quantizer.write(tmp_path / "convolutions.onnx", products), images(100, seed=4)
    network = lowered(path, "executorch")
    assert count(network, DynamicCodes) == 0
    assert rms_error(computed(network, x), computed(quantizer.simulated(products), x)) < 1e-6


@pytest.mark.parametrize("runtime", RUNTIMES_OF_TORCH)
def test_what_keeps_operators_apart_elsewhere_is_taken_away(
    runtime: Runtime, quantizer: Quantizer, quantized: Path, tmp_path: Path
) -> None:
    apart = Quantizer(quantizer.path, quantizer.images, Quantize(bit_exact=True)).write(tmp_path / "apart.onnx")
    assert apart.stat().st_size > quantized.stat().st_size
    x = images(8, seed=4)
    assert torch.equal(computed(lowered(apart, runtime), x), computed(lowered(quantized, runtime), x))


def test_every_layer_has_its_codes(quantizer: Quantizer, quantized: Path) -> None:
    """Codes are signed, and each of an activation's readers has its own way back to floats."""
    network = lowered(quantized, "executorch")
    held = [module for module in network.modules() if isinstance(module, Weights)]
    assert len(held) == len(quantizer.layers)
    assert all(module.held.dtype == torch.int8 for module in held)
    assert count(network, Decode) >= count(network, Encode) > 0
    zeros = {int(module.params[1]) for module in network.modules() if type(module) is Encode}
    assert min(zeros) >= -128
    assert max(zeros) <= 127


def test_products_that_give_out_floats_round_their_input_anew(quantizer: Quantizer, quantized: Path) -> None:
    gemms = [layer for layer in quantizer.layers.values() if layer.op_type == "Gemm"]
    floats = [layer for layer in gemms if layer.output not in quantizer.sites().scales]
    assert count(lowered(quantized, "executorch"), DynamicCodes) == len(floats) > 0
    assert count(lowered(quantized, "litert"), DynamicCodes) == 0


def test_four_bit_codes_are_widened(quantizer: Quantizer, tmp_path: Path) -> None:
    simulated, x = quantizer.simulated(bits=4), images(100, seed=4)
    path = quantizer.write(tmp_path / "int4.onnx", simulated=simulated)
    network = lowered(path, "executorch")
    held = [module.held for module in network.modules() if isinstance(module, Weights)]
    assert max(int(codes.abs().max()) for codes in held) == 7
    assert rms_error(computed(network, x), computed(simulated, x)) < 0.1


def test_codes_padded_with_their_zero_point_are_rounded_floats(tmp_path: Path) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(13, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(nn.functional.pad(self.first(x), (0, 0, 0, 0, 2, 3))).mean((2, 3))

    quantizer = Quantizer(export(Padded(), images(1), tmp_path / "padded.onnx", names=True), images(16))
    path, x = quantizer.write(tmp_path / "int8.onnx"), images(16, seed=4)
    assert any(node.op_type == "Pad" for node in ir.load(path).graph)
    assert rms_error(computed(lowered(path, "executorch"), x), computed(quantizer.simulated(), x)) < 1e-6


def test_what_computes_on_codes_directly_is_refused(quantized: Path) -> None:
    file = ir.load(quantized)
    quantize = next(node for node in file.graph if node.op_type == "QuantizeLinear")
    back = next(use.node for use in quantize.outputs[0].uses())
    shape = constant(file.graph, torch.tensor([-1, 3, 8, 8]).numpy())
    moved = ir.node("Reshape", [quantize.outputs[0], shape])
    file.graph.insert_before(back, moved)
    back.replace_input_with(0, moved.outputs[0])
    with pytest.raises(ModelError, match="it computes on codes directly"):
        lower(file, "executorch")


class _Joined(nn.Module):
    """Two convolutions concatenated, a product of two activations, and a slope for what is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(8)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(torch.cat([self.a(x), 3 * self.b(x)], 1)).flatten(2).transpose(1, 2)
        return (self.q(y) @ self.k(y).transpose(1, 2)).mean(1)


def test_what_is_concatenated_has_the_codes_of_the_whole(tmp_path: Path) -> None:
    quantizer = Quantizer(export(_Joined(), images(1), tmp_path / "joined.onnx", names=True), images(32))
    path, x = quantizer.write(tmp_path / "int8.onnx"), images(32, seed=4)
    network = lowered(path, "executorch")
    assert count(network, Encode) > count(lowered(path, "litert"), Encode)
    assert rms_error(computed(network, x), outputs(path, x)) < 0.5 * rms_error(
        outputs(path, x), outputs(quantizer.path, x)
    )
    if RUNTIMES["executorch"].installed:
        made = FORMATS["executorch"].write(path, tmp_path / "model.pte", images(8))
        assert all(check.passed for check in compare_formats(path, made, x, "int8", "executorch"))


FOREIGN = """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4] x) => (float[N, 3] y)
    <float s = {{0.05}}, {zero}, float[3] ws = {{0.01, 0.02, 0.03}}> {{
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear<axis = {axis}>(w, ws) {layer} }}"""


def foreign(path: Path, layer: str, *, zero: str = "uint8 z = {7}", axis: int = 1) -> Path:
    proto = onnx.parser.parse_model(FOREIGN.format(layer=layer, zero=zero, axis=axis))
    codes = np.arange(-6, 6, dtype=np.int8).reshape(4, 3) * 20
    bias = np.array([1.0, -2.0, 3.0], np.float32)
    proto.graph.initializer.extend([numpy_helper.from_array(codes, "w"), numpy_helper.from_array(bias, "b")])
    onnx.save(proto, path)
    return path


def test_a_product_that_scales_is_left_as_it_is(tmp_path: Path) -> None:
    path = foreign(tmp_path / "scaled.onnx", "y = Gemm<alpha = 0.5, beta = 2.0>(d, v, b)")
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    assert rms_error(computed(lower(ir.load(path), "litert", x), x), torch.from_numpy(expected)) < 0.02


def test_codes_of_other_widths_are_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "wide.onnx", "y = MatMul(d, v)", zero="uint16 z = {7}")
    with pytest.raises(ModelError, match="an activation has uint16 codes; they must have 8 bits"):
        lower(ir.load(path), "executorch")


def test_litert_needs_images_for_a_product(quantized: Path) -> None:
    with pytest.raises(UserError, match="images are needed: LiteRT must know the range"):
        lower(ir.load(quantized), "litert")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_agrees_with_its_onnx_file(kind: str, quantizer: Quantizer, quantized: Path, tmp_path: Path) -> None:
    try:
        check_installed(kind)
    except MissingExtra:
        pytest.skip(f"{kind} is not installed")
    x = images(64, seed=4)
    for source, precision in ((quantizer.path, "float32"), (quantized, "int8")):
        turned = images(32).contiguous(memory_format=torch.channels_last)  # as a training keeps them
        made = FORMATS[kind].write(source, tmp_path / SHIPPED[kind], turned)
        assert all(check.passed for check in compare_formats(source, made, x, precision, kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_that_is_not_installed_is_named_with_its_line(
    kind: str, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"openvino": "openvino", "executorch": "executorch.runtime", "litert": "litert_torch"}[kind]
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'edgewise\[{kind}\]'"):
        FORMATS[kind].write(quantized, tmp_path / SHIPPED[kind], images(8))
    assert not list(tmp_path.iterdir())
