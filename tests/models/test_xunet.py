import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.errors import ModelError
from edgewise.export import compare_float, export
from edgewise.graph import shrink, silence, trace
from edgewise.models import build
from edgewise.models.xunet import DCTBank, dct_kernels
from models.conftest import drawn, on_meta, params, shapes


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network in plain functions: the bank by its sums, blocks that halve where they project."""

    def norm(name: str, y: Tensor) -> Tensor:
        return F.batch_norm(y, *(state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))

    def conv(name: str, y: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(y, state[f"{name}.weight"], stride=stride, padding=1)

    windows = F.unfold(x, 4).reshape(len(x), 4, 4, -1)  # rows, columns, places
    u, n = torch.arange(4.0), torch.arange(4.0)
    cosines = torch.cos(torch.pi * u[:, None] * (2 * n + 1) / 8)
    weight = torch.tensor([0.25, 0.5, 0.5, 0.5]).sqrt()
    responses = torch.einsum("uy,vx,nyxp,u,v->nuvp", cosines, cosines, windows, weight, weight)
    x = responses.abs().clamp(max=8).reshape(len(x), 16, x.shape[2] - 3, x.shape[3] - 3)
    for block in range(10):
        name = f"blocks.{block}"
        project = f"{name}.shortcut.0.weight" in state
        stride = 2 if project else 1
        y = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x)))
        y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, stride))
        x = F.relu(y + (norm(f"{name}.shortcut.1", conv(f"{name}.shortcut.0", x, stride)) if project else x))
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def xunet(width: float = 1.0, size: int = 64, channels: int = 1) -> nn.Module:
    return build("xunet_jpeg", classes=2, channels=channels, size=size, width=width)


def stirred(width: float = 0.25) -> nn.Module:
    """A network whose normalisations are not the identity, in eval mode."""
    model = xunet(width)
    model.load_state_dict({**model.state_dict(), **drawn(model), "dct.weight": model.dct.weight})
    return model.eval()


def images(count: int = 2, size: int = 64) -> Tensor:
    return 255 * torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_the_bank_is_orthonormal():
    basis = dct_kernels(4).reshape(16, 16)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16, dtype=torch.float64))


def test_the_first_kernel_is_the_mean_and_the_second_falls_from_left_to_right():
    kernels = dct_kernels(4)
    assert kernels[0].flatten().tolist() == pytest.approx([0.25] * 16)
    assert torch.equal(kernels[1], kernels[1][:1].expand(4, 4))
    assert (kernels[1][0].diff() < 0).all()
    assert torch.equal(kernels[4], kernels[1].T)


def test_the_bank_by_hand():
    x = torch.zeros(1, 1, 4, 5)
    x[0, 0, :, 4] = 100.0
    found = DCTBank(1)(x)
    assert found.shape == (1, 16, 1, 2)
    assert not found[..., 0].any()
    # The mean is 4 x 100 / 4, truncated; a column has no vertical frequencies.
    assert found[0, :4, 0, 1].tolist() == [8.0] * 4
    assert found[0, 4:, 0, 1].abs().max() < 1e-4
    x /= 100
    assert DCTBank(1)(x)[0, 0, 0, 1].item() == pytest.approx(1.0)


def test_the_bank_is_fixed():
    model = xunet(0.25)
    assert "dct.weight" in dict(model.named_buffers())
    assert not [name for name, _ in model.named_parameters() if "dct" in name]
    assert not [m for m in model.dct.modules() if isinstance(m, nn.Conv2d)]


def test_25_convolutions_and_the_published_size():
    model = on_meta(xunet)
    kernels = [m.weight.shape for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(kernels) == 25
    assert sum(shape.numel() for shape in kernels) == 5_746_464  # 7,776 + 63 (24² + 48² + 96² + 192²) + 18 384²
    assert sum(".shortcut." in name and name.endswith("0.weight") for name in shapes(model)) == 5
    assert round(params(model) / 1e6, 2) == 5.75
    assert shapes(model)["blocks.0.conv1.weight"] == (12, 16, 3, 3)
    assert shapes(model)["blocks.0.conv2.weight"] == (24, 12, 3, 3)
    assert shapes(model)["blocks.8.shortcut.0.weight"] == (384, 192, 3, 3)
    assert shapes(model)["fc.weight"] == (2, 384)


def test_a_quarter_of_the_width_by_hand():
    """Widths are multiples of 8: 12, 24, 48, 96, 192 and 384 become 8, 8, 16, 24, 48 and 96."""
    model = on_meta(xunet, width=0.25)
    weights = 9 * (16 * 8 + 8 * 8 + 16 * 8)
    for width, after in ((8, 16), (16, 24), (24, 48), (48, 96)):
        weights += 9 * (3 * width**2 + 2 * width * after)
    weights += 9 * 2 * 96**2
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)) == weights


def test_the_network_computes_what_is_described():
    model = stirred()
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(model.state_dict(), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "after"), [(512, 16), (256, 8), (64, 2), (32, 1), (4, 1)])
def test_the_resolution_is_halved_five_times(size, after):
    model = on_meta(xunet, size=size)
    seen = []
    model.blocks.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2:]))
    assert model(torch.empty(1, 1, size, size, device="meta")).shape == (1, 2)
    assert seen == [(after, after)]


def test_images_smaller_than_a_kernel_are_refused():
    with pytest.raises(ModelError, match="images of 3x3 are too small for xunet_jpeg, whose kernels are 4x4"):
        xunet(size=3)


def test_pruning_leaves_the_bank_whole():
    model = stirred().double()
    x = images().double()
    graph = trace(model, x)
    assert graph.rigid == ("dct",)
    assert [group.name for group in graph.prunable()] == [group.name for group in graph.groups if group.name != "dct"]
    keep = {group.name: range(0, group.size, 2) for group in graph.prunable()}
    small = shrink(model, graph, keep)
    assert torch.equal(small.dct.weight, model.dct.weight)
    with torch.no_grad():
        torch.testing.assert_close(small(x), silence(model, graph, keep)(x), rtol=1e-9, atol=1e-12)


def test_a_bank_that_lost_a_kernel_is_refused():
    model = xunet(0.25)
    model.dct.weight = model.dct.weight[:15]
    with pytest.raises(ValueError, match="the bank has 15 kernels; it must have 16"):
        model(images())


def test_the_exported_file_computes_the_same_and_names_the_bank(tmp_path):
    model = stirred()
    x = images(4)
    file = export(model, x[:1], tmp_path / "net.onnx", names=True)
    check = compare_float(model, file, x)
    assert check.passed, check
    nodes = onnx.load(file).graph.node
    assert [node.name for node in nodes if node.op_type == "Conv"][:2] == ["dct", "blocks.0.conv1"]
    assert [node.op_type for node in nodes][:3] == ["Conv", "Abs", "Clip"]
