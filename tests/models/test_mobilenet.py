import pytest
import torch

from edgewise.models import build, load_weights
from models.conftest import assert_same_network, on_meta, shapes


def test_it_is_torchvisions_network(torchvision_models):
    theirs = on_meta(torchvision_models.mobilenet_v2, num_classes=10)
    assert_same_network(on_meta(build, "mobilenet_v2", size=96), theirs, torch.randn(2, 3, 96, 96))


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.4])
def test_widths_are_torchvisions(torchvision_models, width):
    theirs = on_meta(torchvision_models.mobilenet_v2, num_classes=10, width_mult=width)
    assert shapes(on_meta(build, "mobilenet_v2", size=224, width=width)) == shapes(theirs)


@pytest.mark.parametrize(("size", "left"), [(28, 4), (32, 4), (64, 8), (96, 3), (224, 7)])
def test_small_images_are_divided_by_eight_and_large_ones_by_thirty_two(size, left):
    model = on_meta(build, "mobilenet_v2", size=size)
    assert model.features(torch.empty(1, 3, size, size, device="meta")).shape == (1, 1280, left, left)


def test_small_and_large_networks_have_the_same_tensors():
    assert shapes(on_meta(build, "mobilenet_v2", size=32)) == shapes(on_meta(build, "mobilenet_v2", size=224))


@pytest.mark.shared
def test_trained_weights_load_key_for_key(shared, torchvision_models):
    (file,) = (shared / "weights").glob("mobilenet_v2-*.pth")
    theirs = torchvision_models.mobilenet_v2()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    ours = load_weights(build("mobilenet_v2", classes=1000, size=224), file)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
