"""Telling JPEGs with a hidden message from those without: pairs in a batch, and the error of the best threshold."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from edgewise.data import Split, normalize
from edgewise.errors import DataError
from edgewise.tasks.task import Task, check_finite, check_logits, cross_entropy

COVER, STEGO = 0, 1
CLASSES = 2


def detection_error(covers: Tensor, stegos: Tensor) -> float:
    """Compute P_E: the least mean of both error rates that a threshold on a score can have.

    P_E = min over t of (P_FA(t) + P_MD(t)) / 2,  P_FA the share of covers > t, P_MD of stegos <= t

    Args:
        covers: scores [N] of covers, finite.
        stegos: scores [M] of stegos, which should be higher.

    Returns:
        A number in [0, 1/2]: 0 where a threshold tells all apart, 1/2 where none does better than a guess.

    Reference: Kodovsky, Fridrich, Holub, "Ensemble Classifiers for Steganalysis of Digital Media", IEEE TIFS 2012,
    eq. (1).

    >>> detection_error(torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([3.0, 4.0, 4.5, 6.0]))  # t = 2: 1 of 4 covers
    0.125
    """
    # The threshold is each of the scores in turn; below all of them all are called stego, and the mean is 1/2.
    thresholds = torch.cat([covers, stegos])
    below = [torch.searchsorted(part.sort().values, thresholds, right=True).double() for part in (covers, stegos)]
    false_alarms, missed = 1 - below[0] / len(covers), below[1] / len(stegos)
    return min(0.5, float(((false_alarms + missed) / 2).min()))


def turn(pairs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror and turn by right angles: each pair in one of the eight ways, all equally likely.

    Args:
        pairs: [B, K, C, H, H]; what belongs together is turned alike.
        generator: where the ways come from.
    """
    device = generator.device if generator is not None else pairs.device
    chosen = torch.randint(2, (3, len(pairs), 1, 1, 1, 1), generator=generator, device=device).to(pairs.device).bool()
    pairs = torch.where(chosen[0], pairs.flip(-1), pairs)
    pairs = torch.where(chosen[1], pairs.flip(-2), pairs)
    return torch.where(chosen[2], pairs.transpose(-1, -2), pairs)


@dataclass(frozen=True)
class Steganalysis(Task):
    """Whether an image hides a message.

    A split's image is a pair, cover and stego, and both go through the network one after the other.

    Args:
        mean: one number, of images in [0, 1]; inputs are (image / 255 - mean) / std. The data's 0 and 1/255 make
            inputs of pixels as they are, which is what a network needs whose first layer truncates.
        std: likewise.
        label_smoothing: share of each target spread evenly over both classes, in [0, 1].
        augment: ``flip``, which mirrors and turns by right angles, a cover and its stego alike; or nothing. Cutting
            or blending would mean other payloads.

    `fit` sets the last two to what its `TrainConfig` says.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1 / 255,)
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ("flip",)

    def __post_init__(self) -> None:
        if len(self.mean) != 1 or len(self.std) != 1 or not self.std[0] > 0:
            raise ValueError(f"mean {self.mean} and std {self.std} need one number each, and std one above 0")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1]")
        for name in self.augment:
            if name != "flip":
                raise ValueError(f'augment holds "{name}"; steganalysis takes "flip" alone, or nothing: augment = []')

    def trained_with(
        self, *, label_smoothing: float, augment: tuple[str, ...], cutout_size: float, mixup_alpha: float
    ) -> Self:
        """Return this task with the training choices of a `TrainConfig`; the last two mean nothing here.

        Raises:
            ValueError: another augmentation than ``flip``.
        """
        return replace(self, label_smoothing=label_smoothing, augment=tuple(augment))

    def check(self, split: Split) -> None:
        """Refuse a split that cannot be learned or measured.

        Raises:
            DataError: no images, or not float32 [N, 2, 1, H, H]; labels that are not int64 [N].
        """
        images, labels = split.images, split.labels
        if len(split) == 0:
            raise DataError("the split holds no pairs of images")
        side = images.shape[-1]
        if images.dtype != torch.float32 or images.shape != (len(images), 2, 1, side, side):
            shape = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise DataError(
                f"images are {shape}; they must be float32 [N, 2, 1, H, H], square pairs of cover and stego"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            shape = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
            raise DataError(f"labels are {shape}; they must be int64 [{len(images)}], the number of each cover")

    def batch(
        self, split: Split, index: Tensor, *, augment: bool, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gather pairs, turn them, normalise them.

        Returns:
            Inputs, float32 [2 B, 1, H, H], each cover followed by its stego, and targets int64 [2 B], 0, 1, 0, 1, ...
        """
        pairs = split.images[index]
        if augment and "flip" in self.augment:
            pairs = turn(pairs, generator)
        targets = torch.tensor([COVER, STEGO], device=pairs.device).repeat(len(pairs))
        return normalize(pairs.flatten(0, 1), self.mean, self.std), targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean cross entropy of logits [N, 2] with targets [N].

        Raises:
            ModelError: outputs of another shape.
        """
        check_logits(outputs, targets, CLASSES)
        return cross_entropy(outputs, targets, self.label_smoothing)

    @property
    def metric_name(self) -> str:
        """What the metric is called."""
        return "1 - P_E"

    def metric(self, answers: Tensor, targets: Tensor) -> float:
        """Compute 1 - P_E of logits [N, 2], scored by how far stego's lies above cover's: from 1/2, a guess, to 1.

        Raises:
            ModelError: outputs of another shape, or with NaN or infinity in them.

        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 2.0], [0.0, 0.5]])
        >>> Steganalysis().metric(logits, torch.tensor([0, 1, 0, 1]))  # scores -1 and 1 of covers, 3 and 0.5 of stegos
        0.75
        """
        check_logits(answers, targets, CLASSES)
        check_finite(answers, "detection error")
        scores = answers[:, STEGO].double() - answers[:, COVER].double()
        return 1 - detection_error(scores[targets == COVER], scores[targets == STEGO])

    def check_network(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Refuse a network that does not return logits [N, 2]."""
        from edgewise.models import check_output  # it imports what trains, which imports tasks

        check_output(model, input_shape, CLASSES)
