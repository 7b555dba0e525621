import pytest
import torch

from edgewise.models import build
from models.conftest import assert_same_network, drawn, on_meta, shapes


def test_it_is_torchvisions_network(torchvision_models):
    theirs = on_meta(torchvision_models.vgg16_bn, num_classes=10)
    assert_same_network(on_meta(build, "vgg16_bn", size=96), theirs, torch.randn(1, 3, 96, 96))


def test_vgg19_has_torchvisions_tensors(torchvision_models):
    theirs = on_meta(torchvision_models.vgg19_bn, num_classes=10)
    assert shapes(on_meta(build, "vgg19_bn", size=224)) == shapes(theirs)


@pytest.mark.parametrize("name", ["vgg16_bn", "vgg19_bn"])
def test_the_small_network_keeps_the_names_of_the_features(torchvision_models, name):
    ours, theirs = shapes(on_meta(build, name)), shapes(on_meta(getattr(torchvision_models, name)))
    rest = {key: ours[key] for key in ours if not key.startswith("features.")}
    assert rest == {"classifier.weight": (10, 512), "classifier.bias": (10,)}
    assert {key: ours[key] for key in ours if key not in rest} == {
        key: theirs[key] for key in theirs if key.startswith("features.")
    }


@pytest.mark.parametrize(("size", "left"), [(16, 1), (28, 1), (32, 1), (33, 2), (64, 2)])
def test_something_is_left_of_every_small_image(size, left):
    model = on_meta(build, "vgg16_bn", size=size)
    assert model.features(torch.empty(1, 3, size, size, device="meta")).shape == (1, 512, left, left)


def test_the_small_head_reads_the_mean_of_the_features():
    model = on_meta(build, "vgg16_bn", size=64, width=0.25)
    model.load_state_dict(drawn(model), assign=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.features(x).mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_the_large_classifier_follows_the_width():
    found = shapes(on_meta(build, "vgg16_bn", size=224, width=0.5))
    assert found["classifier.0.weight"] == (2048, 256 * 49)
    assert found["classifier.6.weight"] == (10, 2048)
