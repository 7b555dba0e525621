import pytest
import torch

from edgewise.data import Dataset, Split, normalize


def split(n=4, channels=3, size=6):
    return Split(torch.zeros(n, channels, size, size, dtype=torch.uint8), torch.arange(n))


def test_a_split_counts_its_images_and_stays_where_it_is():
    images = split()
    assert len(images) == 4
    moved = images.to("cpu")
    assert moved.images is images.images
    assert moved.labels is images.labels
    assert images.to(torch.device("meta")).images.device.type == "meta"


def test_a_dataset_tells_the_shape_of_its_images():
    data = Dataset("d", ("a", "b"), split(), split(1), split(2), (0.5,) * 3, (0.5,) * 3, "sha256:0")
    assert (data.channels, data.size, data.input_shape) == (3, 6, (3, 6, 6))
    assert data.note == ""


def test_normalize_by_hand():
    images = torch.tensor([[[[0, 51]], [[102, 255]]]], dtype=torch.uint8)
    expected = [[[[(0 - 0.2) / 0.5, (0.2 - 0.2) / 0.5]], [[(0.4 - 0.6) / 0.1, (1 - 0.6) / 0.1]]]]
    torch.testing.assert_close(normalize(images, (0.2, 0.6), (0.5, 0.1)), torch.tensor(expected))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalize_is_the_formula_in_float64(layout):
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8).to(memory_format=layout)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    channel = lambda values: torch.tensor(values, dtype=torch.float64).view(3, 1, 1)  # noqa: E731
    expected = (images.double() / 255 - channel(mean)) / channel(std)
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=layout)
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5,) * 3), ((0.5,) * 3, (0.5,))])
def test_normalize_refuses_other_channels(mean, std):
    with pytest.raises(ValueError, match="3 channels"):
        normalize(split().images, mean, std)
