import pytest
import torch

from edgewise.models import build
from models.conftest import assert_same_network, on_meta, params, shapes


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_it_is_torchvisions_network(torchvision_models, name):
    theirs = on_meta(getattr(torchvision_models, name), num_classes=10)
    assert_same_network(on_meta(build, name, size=96), theirs, torch.randn(2, 3, 96, 96))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_small_stem_is_the_only_difference(name):
    small, large = shapes(on_meta(build, name)), shapes(on_meta(build, name, size=224))
    assert small.keys() == large.keys()
    assert {key for key in small if small[key] != large[key]} == {"conv1.weight"}
    assert small["conv1.weight"] == (64, 3, 3, 3)


def test_a_small_image_keeps_its_resolution_until_the_second_stage():
    model = on_meta(build, "resnet18")
    seen = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert seen == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_parameters_of_the_small_resnet18_by_hand():
    """Torchvision's, with a 3x3 stem for the 7x7 and 10 classes for 1000."""
    assert params(on_meta(build, "resnet18")) == 11_689_512 - 3 * 64 * (49 - 9) - 513 * 990
