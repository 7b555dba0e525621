"""One label per image: cross entropy and accuracy."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from edgewise.data import Split, crop, cutout, flip, mixup, normalize
from edgewise.errors import DataError, nearest
from edgewise.tasks.task import Task, check_finite, check_logits, cross_entropy

AUGMENTATIONS = ("crop", "flip", "cutout", "mixup")


@dataclass(frozen=True)
class Classification(Task):
    """Which of the classes an image shows.

    Args:
        mean: per channel, of images in [0, 1]; inputs are (image / 255 - mean) / std.
        std: per channel, likewise.
        classes: how many; labels run from 0 to classes - 1.
        label_smoothing: share of each target spread evenly over all classes, in [0, 1].
        augment: of ``crop`` (shifts by up to 1/8 of the side), ``flip`` (left and right), ``cutout`` and ``mixup``.
        cutout_size: side of the square that ``cutout`` blanks, as a fraction of the image's side.
        mixup_alpha: both parameters of the Beta distribution that ``mixup`` draws its share from.

    `fit` sets the last four to what its `TrainConfig` says.

    References:
        DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
        arXiv 1708.04552 (half the side on CIFAR-10). Zhang et al., "mixup: Beyond Empirical Risk Minimization",
        ICLR 2018, arXiv 1710.09412 (alpha from 0.1 to 0.4 on ImageNet, 1 on CIFAR-10).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ("crop", "flip")
    cutout_size: float = 0.5
    mixup_alpha: float = 0.2

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} need one number per channel, and each std above 0")
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}; it must be at least 2")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1]")
        if not 0 < self.cutout_size <= 1:
            raise ValueError(f"cutout_size is {self.cutout_size}; it must be in (0, 1], a fraction of the image's side")
        if not self.mixup_alpha > 0:
            raise ValueError(f"mixup_alpha is {self.mixup_alpha}; it must be above 0")
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise ValueError(f'augment holds "{name}"; {nearest(name, AUGMENTATIONS)}')

    def trained_with(
        self, *, label_smoothing: float, augment: tuple[str, ...], cutout_size: float, mixup_alpha: float
    ) -> Self:
        """Return this task with the training choices of a `TrainConfig`."""
        return replace(
            self,
            label_smoothing=label_smoothing,
            augment=tuple(augment),
            cutout_size=cutout_size,
            mixup_alpha=mixup_alpha,
        )

    def check(self, split: Split) -> None:
        """Refuse a split that cannot be learned or measured.

        Raises:
            DataError: no images, not uint8 [N, C, H, W] with the mean's channels, or a label out of range (which).
        """
        images, labels = split.images, split.labels
        if len(split) == 0:
            raise DataError("the split holds no images")
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != len(self.mean):
            shape = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise DataError(f"images are {shape}; they must be uint8 [N, C, H, W] with C = {len(self.mean)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            shape = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
            raise DataError(f"labels are {shape}; they must be int64 [{len(images)}], one per image")
        bad = ((labels < 0) | (labels >= self.classes)).nonzero()
        if len(bad):
            place = int(bad[0])
            raise DataError(f"label {int(labels[place])} of image {place} is not in [0, {self.classes})")

    def batch(
        self, split: Split, index: Tensor, *, augment: bool, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gather images, augment them as bytes, normalise them; ``mixup`` comes last.

        Returns:
            Inputs, float32 [B, C, H, W], and targets: int64 [B], or float32 [B, classes] after ``mixup``.
        """
        images, targets = split.images[index], split.labels[index]
        chosen = self.augment if augment else ()
        side = images.shape[-1]
        if "crop" in chosen:
            images = crop(images, max(1, side // 8), generator)
        if "flip" in chosen:
            images = flip(images, generator)
        if "cutout" in chosen:
            images = cutout(images, max(1, round(self.cutout_size * side)), generator)
        inputs = normalize(images, self.mean, self.std)
        if "mixup" in chosen:
            inputs, targets = mixup(inputs, targets, self.classes, self.mixup_alpha, generator)
        return inputs, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean cross entropy of logits [B, classes] with labels [B] or shares [B, classes].

        Raises:
            ModelError: outputs of another shape.
        """
        check_logits(outputs, targets, self.classes)
        return cross_entropy(outputs, targets, self.label_smoothing)

    @property
    def metric_name(self) -> str:
        """What the metric is called."""
        return "accuracy"

    def metric(self, answers: Tensor, targets: Tensor) -> float:
        """Compute the accuracy: the fraction of rows of logits [N, classes] whose largest is at the label [N].

        Raises:
            ModelError: outputs of another shape, or with NaN or infinity in them.

        >>> task = Classification(mean=(0.5,), std=(0.5,), classes=2)
        >>> task.metric(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1, 1]))
        0.75
        """
        check_logits(answers, targets, self.classes)
        check_finite(answers, "accuracy")
        return float((answers.argmax(dim=1) == targets).double().mean())

    def check_network(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Refuse a network that does not return logits [N, classes]."""
        from edgewise.models import check_output  # it imports what trains, which imports tasks

        check_output(model, input_shape, self.classes)
