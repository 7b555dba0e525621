"""A whole run on a few hundred real images: the recipe, the network and the pack that the run's tests share."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from edgewise import data

NETWORK = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(2 * width), nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.b(self.relu(self.norm(self.a(x)))))


def tiny(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Block(16), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )
"""

RECIPE = """
model = "{folder}/network.py:tiny"
data = "pack:{folder}/pack"
[budget]
size = "60 KB"
[[step]]
kind = "train"
epochs = 3
lr = 0.05
batch = 64
[[step]]
kind = "prune"
keep_macs = 0.6
round_to = 8
recalibrate = 256
[[step]]
kind = "train"
epochs = 2
lr = 0.02
batch = 64
ema = 0.9
[[step.method]]
kind = "distill"
[[step]]
kind = "quantize"
calibration = 64
[[step]]
kind = "export"
[[step]]
kind = "measure"
seconds = 0.2
"""


def write(folder: Path, train: int = 480, test: int = 120) -> Path:
    """Write the network, a pack of embedded images and the recipe; return the recipe."""
    images = data.load("fashion-mnist")
    (folder / "pack").mkdir(parents=True)
    for name, split, count in (("train", images.train, train), ("test", images.test, test)):
        encoded = [_png(image) for image in split.images[:count].numpy()]
        np.savez(
            folder / "pack" / f"{name}.npz",
            data=np.frombuffer(b"".join(encoded), np.uint8),
            offsets=np.cumsum([0, *map(len, encoded)]),
            labels=split.labels[:count].numpy(),
        )
    (folder / "network.py").write_text(NETWORK)
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "PNG")
    return file.getvalue()
