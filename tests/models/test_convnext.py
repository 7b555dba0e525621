import pytest
import torch

from edgewise.errors import ModelError
from edgewise.models import build, load_weights
from models.conftest import assert_same_network, drawn, on_meta, shapes

SIZES = ("atto", "femto", "pico", "nano", "tiny", "small")


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_atto"])
def test_it_is_timms_network(timm, name):
    """timm's smaller ones have 1x1 convolutions for linear layers unless they are told otherwise."""
    theirs = on_meta(timm.create_model, name, num_classes=10, conv_mlp=False)
    assert_same_network(on_meta(build, name, size=96), theirs, torch.randn(2, 3, 96, 96))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_timms_tensors(timm, size):
    theirs = on_meta(timm.create_model, f"convnext_{size}", num_classes=10, conv_mlp=False)
    assert shapes(on_meta(build, f"convnext_{size}", size=224)) == shapes(theirs)


def test_timms_weights_of_one_by_one_convolutions_load(timm, tmp_path):
    theirs = timm.create_model("convnext_atto", num_classes=10)
    theirs.load_state_dict(drawn(theirs))
    torch.save(theirs.state_dict(), tmp_path / "atto.pth")
    ours = load_weights(build("convnext_atto", size=96), tmp_path / "atto.pth")
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("size", "left"), [(16, 1), (28, 1), (32, 2), (64, 4), (65, 2), (224, 7)])
def test_patches_are_two_pixels_on_small_images_and_four_on_large_ones(size, left):
    model = on_meta(build, "convnext_atto", size=size)
    maps = model.stages(model.stem(torch.empty(1, 3, size, size, device="meta")))
    assert maps.shape == (1, 320, left, left)


def test_blocks_start_almost_as_the_identity():
    model = build("convnext_atto", width=0.25)
    block = model.stages[0].blocks[0]
    assert block.gamma.detach().tolist() == pytest.approx([1e-6] * 16)  # 40 · 0.25 = 10: 8 is more than 10 % short
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-4)


def test_an_image_too_small_is_refused():
    with pytest.raises(ModelError, match="size must be at least 16 pixels, it is 15"):
        build("convnext_atto", size=15)
