"""What holds for every reference network, and what `build` says to a wrong name."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.errors import ModelError, UnknownName
from edgewise.graph import shrink, silence, trace
from edgewise.models import MODELS, build, describe
from models.conftest import on_meta, params

ALL = pytest.mark.parametrize("name", MODELS)
CLASSIFIERS = [name for name, architecture in MODELS.items() if architecture.kind == "classification"]

# Published counts at 1000 classes and 224 pixels: torchvision's documentation; timm's for ConvNeXt atto to small.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "mobilenet_v2": 3_504_872,
    "convnext_atto": 3_695_520,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
}


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
def test_parameters_are_the_published_ones(name, expected):
    assert params(on_meta(build, name, classes=1000, size=224)) == expected


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 64), (3, 65), (1, 224)])
def test_images_become_logits(name, channels, size):
    model = on_meta(build, name, classes=7, channels=channels, size=size)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


@ALL
def test_networks_start_in_training_mode_on_the_cpu_with_finite_weights(name):
    model = build(name, width=0.25)
    assert all(module.training for module in model.modules())
    assert all(p.device.type == "cpu" and p.isfinite().all() and p.requires_grad for p in model.parameters())


@ALL
def test_the_seed_decides_the_weights(name):
    torch.manual_seed(3)
    first = build(name, width=0.25).state_dict()
    torch.manual_seed(3)
    again = build(name, width=0.25).state_dict()
    other = build(name, width=0.25).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@ALL
def test_a_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = build(name, width=0.25)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@ALL
@pytest.mark.parametrize("width", [0.1, 0.75, 1.5])
def test_widths_are_multiples_of_eight(name, width):
    model = on_meta(build, name, width=width)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if key not in ("heatmap", "offset", "size"):
                assert module.out_channels % 8 == 0
            assert module.in_channels % 8 == 0 or module.in_channels == 3


@ALL
def test_wider_networks_are_larger(name):
    sizes = [params(on_meta(build, name, width=width)) for width in (0.5, 1.0, 2.0)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 16 if name in CLASSIFIERS else 32) for name in MODELS),
        ("resnet20", 72),
        ("vgg16_bn", 72),
    ],
)
def test_a_pruned_copy_runs_with_the_same_forward(name, size):
    """Every exact group loses half of its channels, chosen at random: equal to the original with those silenced."""
    torch.manual_seed(0)
    model = build(name, size=size, width=0.2).double().eval()
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):  # ConvNeXt's layer scale starts so small that nothing else would be seen
            nn.init.ones_(parameter)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    graph = trace(model, x)
    rng = np.random.default_rng(0)
    keep = {group.name: rng.permutation(group.size)[: group.size // 2] for group in graph.prunable()}
    small = shrink(model, graph, keep)
    with torch.no_grad():
        torch.testing.assert_close(small(x), silence(model, graph, keep)(x), rtol=1e-9, atol=1e-12)
    assert params(small) < 0.8 * params(model)


@ALL
def test_no_width_is_rigid(name):
    """Every group can be halved at once, the inexact ones (which layer normalisation ties) too."""
    model = on_meta(build, name)
    graph = trace(model, torch.empty(2, 3, 32, 32))
    small = shrink(model, graph, {group.name: range(group.size // 2) for group in graph.groups})
    shape = (2, 10) if name in CLASSIFIERS else (2, 14, 8, 8)
    assert small(torch.empty(2, 3, 32, 32, device="meta")).shape == shape
    assert params(small) < 0.3 * params(model)


def test_descriptions_state_the_parameters_there_are():
    rows = dict(describe())
    assert list(rows)[: len(MODELS)] == list(MODELS)
    assert {"timm:NAME", "FILE.py:FUNCTION"} < set(rows)
    for name in MODELS:
        stated = re.search(r"([\d.]+) M parameters", rows[name])
        assert stated is not None, name
        assert stated[1] == f"{params(on_meta(build, name)) / 1e6:.2f}", name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet200", 'did you mean "resnet20"?'),
        ("ResNet20", 'did you mean "resnet20"?'),
        ("zzz", "known: centernet_mobilenet_v2, "),
        ("", "known: "),
        ("net:build", "FILE.py:FUNCTION"),
        (":", "FILE.py:FUNCTION"),
    ],
)
def test_an_unknown_name_gets_a_hint(name, hint):
    with pytest.raises(UnknownName, match=re.escape(f'no network is called "{name}"')) as caught:
        build(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["net.py", "folder/net.py:"])
def test_a_file_without_a_function_is_asked_for_it(name):
    with pytest.raises(ModelError, match=r'which function of .*net\.py builds the network\? ".*net\.py:FUNCTION"'):
        build(name)


@pytest.mark.parametrize("name", ["timm:resnet18", "net.py:build"])
def test_a_width_is_refused_by_networks_that_cannot_take_it(name):
    with pytest.raises(ModelError, match=r"width 0\.5 cannot be given to"):
        build(name, width=0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 0}, "classes must be at least 1, it is 0"),
        ({"channels": 0}, "channels must be at least 1, it is 0"),
        ({"size": -4}, "size must be at least 1, it is -4"),
        ({"width": 0.0}, r"width must be a positive number, it is 0\.0"),
        ({"width": -1.0}, "width must be a positive number"),
        ({"width": float("nan")}, "width must be a positive number, it is nan"),
        ({"width": float("inf")}, "width must be a positive number, it is inf"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        build("resnet20", **wrong)
