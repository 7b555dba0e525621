"""Files that cannot be quantised: each is refused in one line that names it, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgewise.errors import EdgewiseError, ModelError, UnsupportedOp
from edgewise.quantize import Quantize, Quantizer, quantize_static
from edgewise.quantize.schemes import SCHEMES
from export.nets import images

Arrays = dict[str, np.ndarray]
WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3, 1, 1)
CONV = "(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv <kernel_shape = [1, 1]> (x, w) }"


def with_one(value: float, dtype: type = np.float32) -> np.ndarray:
    changed = WEIGHT.astype(dtype)
    changed[1, 2] = value
    return changed


def write(path: Path, text: str = CONV, **constants: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text}')
    for name, array in ({"w": WEIGHT} | constants).items():
        if f"{name})" in text or f" {name}," in text:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


def truncated(path: Path) -> None:
    path.write_bytes(write(path).read_bytes()[:-20])


def other_domain(path: Path) -> None:
    proto = onnx.load(write(path, CONV.replace("y = Conv", "c = Conv").replace("}", "y = Relu(c) }")))
    proto.graph.node[1].domain = "acme"
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    onnx.save(proto, path)


def without_its_weights(path: Path) -> None:
    proto = onnx.load(write(path))
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


def with_short_weights(path: Path) -> None:
    proto = onnx.load(write(path))
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").write_bytes(bytes(8))


def quantised(path: Path) -> None:
    quantize_static(write(path.with_name("good.onnx")), path, images(8))


HALVES = CONV.replace("Conv <kernel_shape = [1, 1]> (x, w)", "Cast <to = 1> (c)").replace(
    "{", "{ h = Cast <to = 10> (x) c = Conv <kernel_shape = [1, 1]> (h, w)"
)
BAD: dict[str, tuple[Callable[[Path], object], type[EdgewiseError], str]] = {
    "empty": (lambda path: path.write_bytes(b""), ModelError, "no ONNX file: it holds no operators"),
    "no protobuf": (lambda path: path.write_text("hello, world " * 9), ModelError, "no ONNX file: "),
    "truncated": (truncated, ModelError, "no ONNX file: "),
    "a folder": (lambda path: path.mkdir(), ModelError, "it is a folder, not an ONNX file"),
    "quantised": (quantised, ModelError, "it is quantised already; quantise the float file that it was made from"),
    "unknown operator": (
        lambda path: write(path, CONV.replace("Conv", "Convv")),
        UnsupportedOp,
        'the operator "Convv" is not known; did you mean "Conv"?',
    ),
    "another's operator": (other_domain, UnsupportedOp, 'the operator "acme.Relu" is not known; '),
    "two inputs": (
        lambda path: write(path, "(float[N, 3] a, float[N, 3] b) => (float[N, 3] y) { y = Add(a, b) }"),
        ModelError,
        "it has 2 inputs (a, b), it must have one",
    ),
    "two outputs": (
        lambda path: write(path, CONV.replace("8] y)", "8] y, float[N, 4, 8, 8] z)").replace("}", "z = Relu(y) }")),
        ModelError,
        "it has 2 outputs (y, z), it must have one",
    ),
    "no layers": (
        lambda path: write(path, "(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu(x) }"),
        ModelError,
        "it has no layer to quantise (Conv, ConvTranspose, Gemm, MatMul with constant weights)",
    ),
    "weights elsewhere": (without_its_weights, ModelError, "the file beside it that holds its weights: "),
    "too few weights": (with_short_weights, ModelError, "the file beside it that holds its weights: "),
    "float16 input": (
        lambda path: write(path, CONV.replace("float[", "float16["), w=WEIGHT.astype(np.float16)),
        ModelError,
        "its input is float16, it must be float32",
    ),
    "integer input": (
        lambda path: write(
            path, CONV.replace("(float", "(uint8", 1).replace("{", "{ h = Cast <to = 1> (x)").replace("(x, w", "(h, w")
        ),
        ModelError,
        "its input is uint8, it must be float32",
    ),
    "float16 weights": (
        lambda path: write(path, HALVES, w=WEIGHT.astype(np.float16)),
        ModelError,
        "the weights of node_1 are float16, they must be float32",
    ),
    "NaN": (lambda path: write(path, w=with_one(np.nan)), ModelError, "the weights of node hold NaN or infinity"),
    "infinity": (lambda path: write(path, w=with_one(np.inf)), ModelError, "the weights of node hold NaN or infinity"),
    "NaN in a bias": (
        lambda path: write(path, CONV.replace("w)", "w, b)"), b=np.full(4, np.nan, np.float32)),
        ModelError,
        "the weights of node hold NaN or infinity",
    ),
    "NaN on the way": (
        lambda path: write(path, CONV.replace("{", "{ s = Log(x)").replace("(x, w)", "(s, w)")),
        ModelError,
        'the tensor "s" becomes NaN or infinite on the calibration inputs',
    ),
    "too large on the way": (
        lambda path: write(
            path,
            CONV.replace("{", "{ s = Conv <kernel_shape = [1, 1]> (x, v)").replace("(x, w)", "(s, w)"),
            v=np.full((3, 3, 1, 1), 3e38, np.float32),
        ),
        ModelError,
        'the tensor "s" becomes NaN or infinite on the calibration inputs',
    ),
    "shapes that contradict": (
        lambda path: write(path, w=np.ones((4, 5, 1, 1), np.float32)),
        ModelError,
        "it cannot be quantised: ",
    ),
    "a tensor from nowhere": (
        lambda path: write(path, CONV.replace("(x, w)", "(x, w, v1)")),
        ModelError,
        'Conv reads the tensor "v1", and nothing makes it',
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_it_is_refused_in_one_line(name: str, one_thread: None, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    make, error, message = BAD[name]
    path, out = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    make(path)
    with pytest.raises(error) as caught:
        quantize_static(path, out, images(8))
    assert type(caught.value) is error
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("observer", ["percentile", "mse", "entropy"])
def test_histograms_do_not_count_what_is_no_number(observer: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", CONV.replace("{", "{ s = Log(x)").replace("(x, w)", "(s, w)"))
    with pytest.raises(ModelError, match='the tensor "s" becomes NaN'):
        Quantizer(path, images(8), Quantize(observer=observer)).simulated()  # type: ignore[arg-type]


def test_weights_that_are_codes_already_are_not_quantised_again(tmp_path: Path) -> None:
    source = write(tmp_path / "good.onnx", w=np.tile(WEIGHT, (8, 16, 1, 1)), text=CONV.replace("3, 8, 8", "48, 8, 8"))
    quantizer = Quantizer(source, images(8).repeat(1, 16, 1, 1))
    for scheme in ("int8_weight", "int4_weight"):
        stored = SCHEMES[scheme].write(quantizer, tmp_path / f"{scheme}.onnx")
        with pytest.raises(ModelError, match="its weights are codes already; quantise the float file"):
            Quantizer(stored, images(8).repeat(1, 16, 1, 1))


def test_a_batch_that_is_written_into_a_file_is_named(tmp_path: Path) -> None:
    text = CONV.replace("float[N, 3", "float[1, 3").replace("float[N, 4, 8, 8] y", "float[1, 256] y")
    path = write(tmp_path / "one.onnx", text.replace("y = Conv", "c = Conv").replace("}", "y = Reshape(c, r) }"))
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 256]), "r"))
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="it is written for 1 images at a time, export it with an open batch"):
        quantize_static(path, tmp_path / "out.onnx", images(8))
