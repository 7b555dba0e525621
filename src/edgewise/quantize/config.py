"""What a quantise step may be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

FEWEST_IMAGES = 8
ALLOWED_PT = 1.0  # that "auto" may lose, where nobody says

SchemeName = Literal[
    "auto", "int8_static", "qat", "mixed", "int8_dynamic", "int8_weight", "int4_weight", "float16", "bfloat16"
]

Rounding = Literal["nearest", "adaround"]


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Turn the network into an artifact of fewer bits.

    Args:
        scheme: "int8_static": activations and weights are codes, integers are computed with. "qat": the same, and
            weights and scales are trained for it. "mixed": the same, with weights of 4 or 8 bits, chosen layer by
            layer for `size`. "int8_dynamic": linear layers compute on codes of ranges found as the network runs.
            "int8_weight", "int4_weight", "float16", "bfloat16": weights are stored so, and floats computed with.
            "auto": the fastest of those that lose no more than `max_drop`, as measured.
        calibration: how many training images the ranges are found on.
        observer: what a tensor's range is: "mean" reaches to the average of the images' extremes; "minmax" is all that
            was seen; "moving" the average extremes of the batches; "percentile" leaves out the share of values beyond
            `percentile`; "mse" the range whose codes are nearest to the numbers; "entropy" the one whose codes keep
            the most information. With the bias corrected, MobileNetV2 agreed with its float network on 97.7 % of 900
            images by "mean" (the logits' error was 0.09), 97.2 % by "percentile" (0.15), 95.7 % by "mse" (0.12) and
            94.0 % by "minmax" (0.19).
        percentile: share of values inside the range, in percent; only "percentile" reads it.
        exclude: the names of layers that stay in floats.
        max_drop: accuracy points that may be lost on held-out images. "auto" allows 1 if nothing is said here;
            "int8_static" leaves its most sensitive layers in floats, one by one, until no more is lost.
        size: "mixed" alone: the file's bytes, as a share of the float file's.
        epochs: "qat" alone: how long is trained.
        lr: of that training.
        rounding: of the weights: "nearest" to the nearest code; "adaround" up or down, as is learnt layer by layer from
            calibration images, so that the layer's output changes the least. It is for 4-bit weights; 8-bit ones are no
            better with it.
        rounding_iterations: "adaround" alone: learning steps a layer. 300 take some two minutes on one core for
            MobileNetV2 at 224 pixels; 1000 were no better.
        rounding_images: "adaround" alone: how many of the calibration images it learns from; all are held in memory at
            once.
        equalize: scale channels between pairs of layers so that their ranges are alike, without changing what is
            computed. Pairs with a ReLU6 between are left out: its bound would have to differ from channel to channel.
        correct_bias: take the mean of what rounding the weights changes out of each layer's output; with "adaround",
            of what it learns from, with activations rounded.
        reduce_range: give weights 7 bits, for x86 processors without VNNI, where sums of full products saturate.
        bit_exact: let a convolution's output be rounded before it is added to something, in OpenVINO too, so that a
            convolutional network computes the same codes there as in ONNX Runtime. It takes up to a tenth more time in
            ONNX Runtime, and from a tenth to a half more in OpenVINO.
    """

    kind: Literal["quantize"] = "quantize"
    scheme: SchemeName = "int8_static"
    calibration: int = 256
    observer: Literal["mean", "minmax", "moving", "percentile", "mse", "entropy"] = "mean"
    percentile: float = 99.999
    exclude: tuple[str, ...] = ()
    max_drop: float | None = None
    size: float | None = None
    epochs: int = 3
    lr: float = 0.0005
    rounding: Rounding = "nearest"
    rounding_iterations: int = 300
    rounding_images: int = 64
    equalize: bool = False
    correct_bias: bool = True
    reduce_range: bool = False
    bit_exact: bool = False

    def __post_init__(self) -> None:
        if self.calibration < FEWEST_IMAGES:
            raise ValueError(f"calibration = {self.calibration}: at least {FEWEST_IMAGES} images")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile = {self.percentile}: more than 50, at most 100")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise ValueError(f"max_drop = {self.max_drop}: accuracy points, 0 to 100")
        if (self.size is not None) != (self.scheme == "mixed"):
            raise ValueError(f'size = {self.size}: "mixed" needs it, a share of the float file, and nothing else does')
        if self.size is not None and not 0 < self.size < 1:
            raise ValueError(f"size = {self.size}: a share of the float file's bytes, between 0 and 1")
        if self.rounding == "adaround" and self.scheme not in ("auto", "int8_static", "mixed"):
            raise ValueError(f'rounding = "adaround": of "auto", "int8_static" and "mixed"; scheme is "{self.scheme}"')
        if self.rounding_iterations < 1 or self.rounding_images < FEWEST_IMAGES:
            counts = f"rounding_iterations = {self.rounding_iterations}, rounding_images = {self.rounding_images}"
            raise ValueError(f"{counts}: at least 1, and at least {FEWEST_IMAGES}")
        if self.epochs < 1 or not self.lr > 0:
            raise ValueError(f"epochs = {self.epochs}, lr = {self.lr}: at least 1, and more than 0")

    @property
    def integers(self) -> bool:
        """Whether the artifact computes on codes, or may."""
        return self.scheme in ("auto", "int8_static", "qat", "mixed")

    @property
    def ranges(self) -> dict[str, Any]:
        """The observer's kind and settings."""
        settings = {"percentile": self.percentile} if self.observer == "percentile" else {}
        return {"kind": self.observer, **settings}
