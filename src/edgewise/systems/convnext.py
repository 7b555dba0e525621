"""The ConvNeXt study: channels, single weights and dynamic quantisation, counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgewise.systems.base import SMALL, Arm, Published, System


@dataclass(frozen=True, kw_only=True)
class Study:
    """The arms of the ConvNeXt study for one network.

    Args:
        model: its name.
        train: changes of every recipe's dense training, and of what all have in common.
        recover: changes of the training after pruning, at step 2.
        l1: the sparsities of unstructured pruning by magnitude.
        random: those of random pruning.
        kept: shares of the parameters that structured pruning keeps.
    """

    model: str
    train: tuple[str, ...] = ()
    recover: tuple[str, ...] = ()
    l1: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    random: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    kept: tuple[float, ...] = (0.7, 0.5, 0.3)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, dense first."""
        dense = self._arm("dense", "oto", WITHOUT_HESSO, "step.2=", "step.1=", from_dense=False)
        dynamic = self._arm("dynamic", "oto", WITHOUT_HESSO, "step.1=")
        structured = (
            self._arm(
                f"L1 channels {kept}",
                *("latency", *self.recover, "step.2.method=", "step.3=", "step.1.keep_latency="),
                *("step.1.importance=l1", "step.1.allocate=uniform", f"step.1.keep_params={kept}"),
                series="L1 channels, trained again",
            )
            for kept in self.kept
        )
        weights = (
            self._arm(
                f"{criterion} {scope} {sparsity}",
                *("sparse", "step.2=", f"step.1.sparsity={sparsity}"),
                *(f"step.1.criterion={criterion.lower()}", f"step.1.scope={scope}"),
                series=f"{criterion} weights, {scope}",
            )
            for criterion, sparsities in (("L1", self.l1), ("random", self.random))
            for scope in ("local", "global")
            for sparsity in sparsities
        )
        # By layer: one ranking of all leaves some layers a thousandth of their weights, and then nothing is learnt.
        again = self._arm("L1 local 0.9, trained again", "sparse", *self.recover, "step.1.scope=local")
        ours = self._arm("ours", "latency", *self.recover)
        return dense, dynamic, *self._oto(), *structured, *weights, again, ours

    def _oto(self) -> Iterator[Arm]:
        """Yield HESSO at its sparsities, each followed by what dynamic quantisation makes of it."""
        for sparsity in (0.3, 0.5, 0.7):
            share = f"step.0.method.0.sparsity={sparsity}"
            alone = self._arm(f"HESSO {sparsity}", "oto", share, "step.2=", from_dense=False, series="HESSO")
            yield alone
            yield self._arm(
                f"HESSO {sparsity} + dynamic",
                *("oto", share),
                from_dense=False,
                begins_as=alone.label,
                series="HESSO + dynamic",
            )

    def _arm(self, name: str, recipe: str, *changes: str, from_dense: bool = True, **rest: Any) -> Arm:
        """Return an arm of one of the study's recipes; all but the dense one are compared with that."""
        return Arm(
            label=f"{self.model} {name}",
            recipe=f"convnext-{recipe}",
            changes=(f"model={self.model}", *self.train, *changes),
            dense="" if name == "dense" else f"{self.model} dense",
            from_dense=from_dense,
            **rest,
        )


WITHOUT_HESSO = "step.0.method="
# Half of atto's widths, 10,000 images and 6 epochs: 20 to 30 s an epoch on one core.
SMALL_STUDY = Study(
    model="convnext_atto",
    train=("width=0.5", *SMALL, "step.0.epochs=6", "step.0.lr=0.003", "step.0.schedule=one_cycle"),
    recover=("step.2.epochs=2", "step.2.lr=0.001"),
    l1=(0.1, 0.3, 0.5, 0.7, 0.9),
    random=(0.1, 0.5, 0.9),
    kept=(0.5,),
)

CONVNEXT: dict[str, System] = {
    "convnext-study": System(
        about="pruning of channels and of single weights, dynamic quantisation, and both, on ConvNeXt; counted twice",
        citation=(
            "Francy, Singh, Edge AI: Evaluation of Model Compression Techniques for Convolutional Neural Networks, "
            "arXiv 2409.02134, 2024"
        ),
        published=(
            Published(setting="ConvNeXt, CIFAR-10: structured pruning (OTOv3), at most", file_cut=0.75),
            Published(
                setting='ConvNeXt, CIFAR-10: dynamic quantisation, at most; their "parameters" and MACs',
                visible_params_cut=0.95,
                visible_macs_cut=0.95,
            ),
            Published(
                setting='ConvNeXt, CIFAR-10: OTOv3 + dynamic quantisation; their "parameters" and MACs',
                accuracy_note="3.8 points more",
                file_cut=0.897,
                visible_params_cut=0.95,
                visible_macs_cut=0.95,
            ),
            Published(setting="ConvNeXt-Small on an edge device", accuracy=0.925, latency_s=0.020),
        ),
        arms=(*Study(model="convnext_tiny").arms, *Study(model="convnext_small").arms),
        small=SMALL_STUDY.arms,
        columns=(
            *("params cut", "nonzero cut", "MACs cut", "file", "latency"),
            *("visible params cut", "visible MACs cut"),
        ),
        # ImageNet's patches of 4 pixels go with images larger than 64; the rate is what fine-tuning usually takes.
        tuning=("size=224", "width=1.0", "step.0.epochs=5", "step.0.lr=1e-4"),
    ),
}
