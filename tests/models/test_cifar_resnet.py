import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgewise.models import MODELS, build, load_weights
from edgewise.models.cifar_resnet import option_a
from models.conftest import drawn, on_meta, params, shapes


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network in plain functions, shortcut A with its widths written out."""

    def norm(name: str, y: Tensor) -> Tensor:
        part = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(y, *part)

    x = F.relu(norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        block = 0
        while (name := f"layer{stage}.{block}") + ".conv1.weight" in state:
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)))
            y = norm(f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
            if stride == 2:
                quarter = y.shape[1] // 4
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
            x = F.relu(x + y)
            block += 1
    return F.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1), state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize("blocks", [3, 5, 7, 9])
def test_parameters_by_hand(blocks):
    """Two convolutions and two normalisations a block; the first of stages 2 and 3 reads half the channels."""
    expected = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for width, before in ((16, 16), (32, 16), (64, 32)):
        expected += 2 * blocks * (9 * width * width + 2 * width) - 9 * width * (width - before)
    assert params(on_meta(build, f"resnet{6 * blocks + 2}")) == expected


def test_resnet20_has_the_published_size():
    assert params(on_meta(build, "resnet20")) == 269_722  # 0.27 M, the paper's table 6


def test_the_network_computes_what_the_paper_describes():
    model = on_meta(build, "resnet20")
    state = drawn(model)
    model.load_state_dict(state, assign=True)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(state, x), rtol=1e-4, atol=1e-4)


def test_shortcut_a_by_hand():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    y = option_a(1, 4)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, 1].tolist() == [[1.0, 3.0], [7.0, 9.0]]  # one channel of zeros before, two after
    assert not y[0, [0, 2, 3]].any()


def test_shortcut_a_without_new_channels_only_subsamples():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(option_a(8, 8)(x), x[:, :, ::2, ::2])


def test_a_half_width_by_hand():
    model = on_meta(build, "resnet20", width=0.5)
    assert shapes(model)["layer1.0.conv1.weight"] == (8, 8, 3, 3)
    assert shapes(model)["layer2.0.conv1.weight"] == (16, 8, 3, 3)
    assert shapes(model)["linear.weight"] == (10, 32)


@pytest.mark.parametrize(("size", "after_stem"), [(32, 32), (64, 64), (65, 17), (224, 56)])
def test_large_images_are_quartered_by_the_stem(size, after_stem):
    model = on_meta(build, "resnet20", size=size)
    seen = []
    model.maxpool.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    model(torch.empty(1, 3, size, size, device="meta"))
    assert seen == [after_stem]


@pytest.mark.shared
@pytest.mark.parametrize("name", [name for name in MODELS if name in ("resnet20", "resnet32", "resnet44", "resnet56")])
def test_trained_weights_load_key_for_key(shared, name):
    (file,) = (shared / "weights" / "cifar10").glob(f"{name}-*.th")
    model = load_weights(build(name), file).eval()
    stored = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    state = {key.removeprefix("module."): tensor for key, tensor in stored.items()}
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(state, x), rtol=1e-4, atol=1e-4)
