"""Codes, scales and gradients, each beside an implementation of somebody else's or the formula written out."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgewise.quantize.affine import QParams, QSpec, choose, dequantize, fake_quantize, quantize

U8, S8 = QSpec(), QSpec(signed=True, symmetric=True)
PER_CHANNEL = QSpec(signed=True, symmetric=True, block=(1, -1, -1, -1))


def onnx_codes(x: torch.Tensor, params: QParams, spec: QSpec, axis: int | None = None) -> np.ndarray:
    """Let ONNX Runtime's QuantizeLinear find the codes."""
    dtype = np.int8 if spec.signed else np.uint8
    constants = {"scale": params.scale.squeeze().numpy(), "zero": params.zero_point.squeeze().numpy().astype(dtype)}
    node = helper.make_node("QuantizeLinear", ["x", *constants], ["y"], **({} if axis is None else {"axis": axis}))
    graph = helper.make_graph(
        [node],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(x.shape))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


def awkward(scale: float, zero_point: int, shape: tuple[int, ...] = (400,)) -> torch.Tensor:
    """Return numbers at and beside the midpoints of codes, on both sides of what is in range, and others."""
    middles = (torch.arange(-150.0, 150) + 0.5 - zero_point) * scale
    others = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 200 * scale
    return torch.cat([middles, others]).reshape(shape)


@pytest.mark.parametrize("spec", [U8, S8, QSpec(signed=True)])
@pytest.mark.parametrize("scale", [0.25, 0.1, 1e-3, 3.7])
def test_codes_are_those_of_onnx_runtime(spec, scale):
    zero_point = spec.middle if spec.symmetric else 7
    params = QParams(torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32))
    x = awkward(scale, zero_point)

    ours = quantize(x, params, spec)

    theirs = onnx_codes(x, params, spec).astype(np.int32)
    np.testing.assert_array_equal(ours.numpy(), theirs.clip(*spec.codes))  # ours do without -128 where symmetric


def test_codes_of_channels_are_those_of_onnx_runtime():
    weight = (
        torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-3, 2, 6)[:, None, None, None]
    )
    largest = weight.abs().amax((1, 2, 3), keepdim=True)
    params = choose(-largest, largest, PER_CHANNEL)

    ours = quantize(weight, params, PER_CHANNEL)

    np.testing.assert_array_equal(ours.numpy(), onnx_codes(weight, params, PER_CHANNEL, axis=0))


@pytest.mark.parametrize("spec", [U8, S8])
def test_fake_quantisation_is_torchs_where_no_value_lies_in_the_middle(spec):
    params = QParams(torch.tensor([0.1]), torch.tensor([spec.middle], dtype=torch.int32))
    x = torch.randn(1000, generator=torch.Generator().manual_seed(2)) * 10
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()

    found = fake_quantize(ours, params, spec)
    expected = torch.fake_quantize_per_tensor_affine(theirs, 0.1, spec.middle, *spec.codes)
    found.backward(torch.arange(1000.0))
    expected.backward(torch.arange(1000.0))

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_fake_quantisation_of_channels_is_torchs():
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    largest = weight.abs().amax((1, 2, 3), keepdim=True) * 0.7
    params = choose(-largest, largest, PER_CHANNEL)

    found = fake_quantize(weight, params, PER_CHANNEL)

    expected = torch.fake_quantize_per_channel_affine(
        weight, params.scale.flatten(), params.zero_point.flatten(), 0, *PER_CHANNEL.codes
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_fake_quantisation_is_what_quantising_and_back_gives():
    params = choose(torch.tensor([-1.0]), torch.tensor([3.0]), U8)
    x = torch.linspace(-2, 4, 999)

    found = fake_quantize(x, params, U8)

    torch.testing.assert_close(found, dequantize(quantize(x, params, U8), params, U8), rtol=0, atol=0)


def test_the_scales_gradient_is_that_of_a_learned_step_size():
    """As torch's learnable fake quantisation has it, and by differences where nothing is rounded differently."""
    scale = torch.tensor([0.05], requires_grad=True)
    zero_point = torch.tensor([128], dtype=torch.int32)
    x = torch.randn(500, generator=torch.Generator().manual_seed(4)) * 5
    weights = torch.randn(500, generator=torch.Generator().manual_seed(5))
    theirs = torch.tensor([0.05], requires_grad=True)

    (fake_quantize(x, QParams(scale, zero_point), U8) * weights).sum().backward()
    learnable = torch._fake_quantize_learnable_per_tensor_affine(x, theirs, torch.tensor([128.0]), 0, 255, 1.0)
    (learnable * weights).sum().backward()

    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, theirs.grad, rtol=1e-4, atol=1e-3)


def test_a_scale_of_each_channel_has_its_own_gradient():
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(6))
    scale = torch.full((4, 1, 1, 1), 0.01, requires_grad=True)

    fake_quantize(weight, QParams(scale, torch.zeros(4, 1, 1, 1, dtype=torch.int32)), PER_CHANNEL).sum().backward()

    each = []
    for row in weight:
        own = torch.tensor([0.01], requires_grad=True)
        fake_quantize(row.flatten(), QParams(own, torch.zeros(1, dtype=torch.int32)), S8).sum().backward()
        each.append(own.grad)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad.flatten(), torch.cat(each), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "spec", [U8, S8, QSpec(signed=True), QSpec(bits=4), QSpec(bits=4, symmetric=True), QSpec(bits=16)]
)
@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (2.0, 5.0), (-4.0, -1.0), (0.0, 0.0), (-1e-30, 1e-30)]
)
def test_a_range_is_covered_and_zero_is_exact(spec, low, high):
    params = choose(torch.tensor([low]), torch.tensor([high]), spec)
    step = params.scale.item()

    ends = torch.tensor([0.0, low, high])
    found = fake_quantize(ends, params, spec)

    assert step > 0
    assert found[0] == 0
    assert (found - ends).abs().max() <= step * (1 if spec.symmetric and not spec.signed else 0.51)


def test_blocks_share_a_scale():
    spec = QSpec(bits=4, signed=True, symmetric=True, block=(1, 32))
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(7))
    rows = spec.rows(weight)
    largest = rows.abs().amax(1).reshape(spec.grid(weight.shape))

    found = fake_quantize(weight, choose(-largest, largest, spec), spec)

    assert spec.grid(weight.shape) == (8, 3)
    torch.testing.assert_close(rows[4], weight[1, 32:64], rtol=0, atol=0)
    expected = [
        fake_quantize(
            row,
            choose(-row.abs().max(), row.abs().max(), QSpec(bits=4, signed=True, symmetric=True)),
            QSpec(bits=4, signed=True, symmetric=True),
        )
        for row in rows
    ]
    torch.testing.assert_close(spec.rows(found), torch.stack(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"bits": 1}, "bits = 1: 2 to 16"), ({"bits": 17}, "bits = 17: 2 to 16"), ({"block": (0, 2)}, "block = (0, 2)")],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        QSpec(**arguments)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"blocks of \[1, 32\] do not divide a tensor of the shape \[4, 40\]"):
        QSpec(block=(1, 32)).grid((4, 40))
    with pytest.raises(ValueError, match="a block of 2 dimensions for a tensor of the shape"):
        QSpec(block=(1, 32)).grid((4, 32, 3, 3))
