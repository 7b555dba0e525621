"""The detectors: their shapes, the weights they start from, and that they are files and can be made smaller."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgewise.errors import ModelError
from edgewise.export.onnx import export
from edgewise.export.verify import compare_float
from edgewise.models import MODELS, build, load_pretrained, load_weights
from models.conftest import on_meta

DETECTORS = [name for name, architecture in MODELS.items() if architecture.kind == "detection"]
EACH = pytest.mark.parametrize("name", DETECTORS)


def test_there_are_four() -> None:
    assert DETECTORS == ["centernet_tiny", "centernet_mobilenet_v2", "centernet_resnet18", "centernet_resnet50"]


@EACH
@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 1), (1, 64, 80), (3, 256, 3)])
def test_images_become_maps_at_a_quarter(name: str, channels: int, size: int, classes: int) -> None:
    model = on_meta(build, name, classes=classes, channels=channels, size=size)
    maps = model(torch.empty(2, channels, size, 2 * size, device="meta"))
    assert maps.shape == (2, classes + 4, size // 4, size // 2)


@EACH
def test_every_place_begins_with_the_same_small_probability(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, classes=3, size=64, width=0.25)
    model(torch.randn(4, 3, 64, 64))
    with torch.no_grad():
        maps = model(torch.randn(4, 3, 64, 64))
    assert maps[:, :3].sigmoid().min() > 0.09
    assert maps[:, :3].sigmoid().max() < 0.115
    assert maps[:, 3:].abs().max() < 0.2


@EACH
def test_a_side_that_cannot_be_halved_five_times_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="images of 100 pixels are no multiple of 32"):
        build(name, size=100)


@EACH
def test_backbones_are_the_classifiers_without_their_last_layers(name: str, tmp_path: Path) -> None:
    """Weights of a classifier are taken, and give the maps that the classifier has."""
    source = name.removeprefix("centernet_")
    if source == "tiny":
        pytest.skip("has no classifier")
    torch.manual_seed(0)
    classifier = build(source, classes=5, size=96, width=0.25)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    detector = build(name, classes=3, size=96, width=0.25)
    loaded, kept = load_pretrained(detector, tmp_path / "w.pth", 3)
    assert kept == "neck, head, heatmap, offset, size"
    x = torch.randn(1, 3, 96, 96)
    seen: list[torch.Tensor] = []
    last = classifier.features[-2] if source == "mobilenet_v2" else classifier.layer4
    last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        classifier.eval()(x)
        maps = loaded.backbone.eval()(x)
    assert [tuple(each.shape[2:]) for each in maps] == [(24, 24), (12, 12), (6, 6), (3, 3)]
    torch.testing.assert_close(maps[-1], seen[0])
    fresh, now = detector.state_dict(), loaded.state_dict()
    for key in fresh:
        if not key.startswith("backbone."):
            assert torch.equal(fresh[key], now[key])


def test_weights_of_another_width_or_file_are_refused(tmp_path: Path) -> None:
    torch.save(build("mobilenet_v2", size=96, width=0.5).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"do not fit the network: \d+ of another shape \(backbone\.features\.0\.0"):
        load_pretrained(build("centernet_mobilenet_v2", size=96, width=0.25), tmp_path / "w.pth", 10)
    with pytest.raises(ModelError, match=r"do not fit the network: .*missing"):
        load_pretrained(build("centernet_resnet18", size=96, width=0.25), tmp_path / "w.pth", 10)
    with pytest.raises(ModelError, match="do not fit the network"):  # for evaluation all of them are needed
        load_weights(build("centernet_mobilenet_v2", size=96, width=0.5), tmp_path / "w.pth")


def test_a_detector_of_other_classes_keeps_its_heatmaps(tmp_path: Path) -> None:
    trained = build("centernet_tiny", classes=7, size=64, width=0.5)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    loaded, kept = load_pretrained(build("centernet_tiny", classes=2, size=64, width=0.5), tmp_path / "w.pth", 2)
    assert kept == "heatmap"
    assert torch.equal(loaded.size.weight, trained.size.weight)


@pytest.mark.shared
def test_trained_weights_of_mobilenet_are_taken(shared: Path) -> None:
    (file,) = (shared / "weights").glob("mobilenet_v2-*.pth")
    loaded, kept = load_pretrained(build("centernet_mobilenet_v2", classes=3, size=256), file, 3)
    assert kept == "neck, head, heatmap, offset, size"
    stored = torch.load(file, weights_only=True)["features.17.conv.2.weight"]
    assert torch.equal(loaded.state_dict()["backbone.features.17.conv.2.weight"], stored)


@pytest.mark.parametrize("name", ["centernet_tiny", "centernet_mobilenet_v2"])
def test_a_detector_is_exported_whole(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, classes=3, size=64, width=0.25)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # fresh ones would vanish when folded
                nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        inputs = torch.randn(2, 3, 64, 64)
    path = export(model, inputs, tmp_path / "net.onnx")
    assert compare_float(model, path, inputs).passed  # together, and one by one
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators <= {"Conv", "Relu", "Clip", "Add", "MaxPool", "Resize", "Concat"}
