"""What a training step is told: one frozen value, with defaults for images of CIFAR's size."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]
Augmentation = Literal["crop", "flip", "cutout", "mixup"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained; every rate is a number, every share a fraction of the training.

    Args:
        epochs: how often each image is seen. The images of an epoch that fill no batch are left out of it (others
            each time), so that BatchNorm always sees a full batch and the shapes never change.
        optimizer: ``sgd``, or ``adamw`` with betas 0.9 and 0.999.
        lr: the learning rate at its peak.
        momentum: of ``sgd``.
        nesterov: look ahead by the momentum; ``sgd`` only.
        weight_decay: the L2 pull on weights (decoupled from the gradient in ``adamw``).
        decay: ``weights`` spares biases and the scale and shift of normalisations (every parameter of one
            dimension), whose decay regularises nothing and disturbs scores read from them; ``all`` spares none, as
            most published CIFAR settings do.
        schedule: ``one_cycle`` rises along a cosine from lr/25 and falls along one to nearly 0; ``cosine`` rises
            linearly and falls along a cosine; ``step`` rises linearly and is then multiplied by ``gamma`` at each
            milestone.
        warmup: share of the training in which the rate rises; 0 begins at the peak.
        milestones: shares of the training at which ``step`` lowers the rate.
        gamma: what ``step`` multiplies the rate by.
        batch: images per optimizer step; a smaller split is one batch.
        label_smoothing: share of each target spread evenly over all classes.
        ema: the decay of an exponential moving average of the weights, which is then the network returned; 0 is off.
        precision: ``bfloat16`` runs the forward under autocast, with float32 weights: about twice as fast where the
            processor has bfloat16 arithmetic, several times slower where it has none.
        augment: what is done to the training images, of ``crop``, ``flip``, ``cutout`` and ``mixup``.
        cutout_size: side of the square that ``cutout`` blanks, as a fraction of the image's side.
        mixup_alpha: both parameters of the Beta distribution that ``mixup`` draws its share from.

    Raises:
        ValueError: a value out of range, by name.

    References:
        Smith, Topin, "Super-convergence", 2018, arXiv 1708.07120 (``one_cycle``). He et al., "Bag of Tricks for
        Image Classification", CVPR 2019, arXiv 1812.01187, section 3.1 (no decay on biases and normalisations).
    """

    kind: Literal["train"] = "train"
    epochs: int = 8
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay: Literal["weights", "all"] = "weights"
    schedule: Literal["one_cycle", "cosine", "step"] = "one_cycle"
    warmup: float = 0.2
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    batch: int = 128
    label_smoothing: float = 0.0
    ema: float = 0.0
    precision: Precision = "float32"
    augment: tuple[Augmentation, ...] = ("crop", "flip")
    cutout_size: float = 0.5
    mixup_alpha: float = 0.2

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, float, bool, str], ...] = (
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("lr", self.lr, self.lr > 0, "above 0"),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0"),
            ("warmup", self.warmup, 0 <= self.warmup < 1, "in [0, 1)"),
            ("gamma", self.gamma, 0 < self.gamma <= 1, "in (0, 1]"),
            ("batch", self.batch, self.batch >= 1, "at least 1"),
            ("ema", self.ema, 0 <= self.ema < 1, "in [0, 1)"),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing <= 1, "in [0, 1]"),
            ("cutout_size", self.cutout_size, 0 < self.cutout_size <= 1, "in (0, 1]"),
            ("mixup_alpha", self.mixup_alpha, self.mixup_alpha > 0, "above 0"),
        )
        for name, value, fits, range_ in ranges:
            if not fits:
                raise ValueError(f"{name} is {value}; it must be {range_}")
        if any(not 0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ValueError(
                f"milestones are {self.milestones}; they must rise within (0, 1), as shares of the training"
            )
        if self.optimizer == "adamw" and self.lr > 0.05:
            raise ValueError(f"lr is {self.lr}, a rate for sgd; with adamw it must be at most 0.05 (0.001 is usual)")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("nesterov looks ahead by the momentum, which is 0.0; set nesterov = false")
