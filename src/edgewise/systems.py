"""The published systems that `edgewise reproduce` runs: what was published, and the runs that stand beside it.

Published figures are copied from the papers' abstracts or the authors' own code, as each row says; they are never ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ABSTRACT = "abstract only"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row that somebody else published; what it does not state is None.

    Args:
        setting: network, data, and what was done.
        accuracy: a fraction.
        accuracy_note: what is said of the accuracy in words.
        params_cut: the share of the parameters that went.
        nonzero_cut: the share of the weights that became zero.
        macs_cut: the share of the MACs that went.
        memory_cut: the share of the memory that went, as the authors count it.
        file_cut: the share of the file's bytes that went.
        visible_params_cut: the share of the parameters that went out of a module counter's sight.
        visible_macs_cut: the share of the MACs that did.
        latency_s: of one image, where it was measured, seconds.
        source: where the row was read.
    """

    setting: str
    accuracy: float | None = None
    accuracy_note: str = ""
    params_cut: float | None = None
    nonzero_cut: float | None = None
    macs_cut: float | None = None
    memory_cut: float | None = None
    file_cut: float | None = None
    visible_params_cut: float | None = None
    visible_macs_cut: float | None = None
    latency_s: float | None = None
    source: str = ABSTRACT


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of a system.

    Args:
        label: names it, and its folder.
        recipe: the name of a recipe that comes with edgewise.
        changes: settings that replace the recipe's, as ``--set`` takes them; they count the recipe's own steps.
        dense: the label of the arm whose network is the dense one that this arm is compared with.
        from_dense: starts from that arm's weights, so that the recipe's own dense training is left out.
        begins_as: the label of an arm before it whose first steps are the same, so that they are not done again.
        series: arms of one series are one line of the chart; by default each is its own.
        against: the label of the arm whose training time this one's is compared with.
    """

    label: str
    recipe: str
    changes: tuple[str, ...] = ()
    dense: str = ""
    from_dense: bool = False
    begins_as: str = ""
    series: str = ""
    against: str = ""


@dataclass(frozen=True, kw_only=True)
class System:
    """A published system: where it is from, what it published, and the runs of it at full and at small scale.

    Args:
        about: what it is, in a line.
        citation: where it was published.
        published: the figures there.
        arms: the runs at full scale.
        small: those that two processor cores finish in some minutes.
        columns: of its table, by the names of `edgewise.record_table.COLUMNS`.
        tuning: what is changed where dense trainings start from given weights.
    """

    about: str
    citation: str
    published: tuple[Published, ...]
    arms: tuple[Arm, ...]
    small: tuple[Arm, ...]
    columns: tuple[str, ...] = ("params cut", "MACs cut", "memory cut", "latency", "file", "training")
    tuning: tuple[str, ...] = ()


def _compared(model: str, changes: tuple[str, ...] = ()) -> tuple[Arm, Arm]:
    """Return a model's dense training and what is usually done with it: prune, train again."""
    settings = (f"model={model}", *changes)
    dense = Arm(label=f"{model} dense", recipe="dense", changes=settings)
    usual = Arm(
        label=f"{model} train-prune-retrain",
        recipe="train-prune-retrain",
        changes=settings,
        dense=dense.label,
        from_dense=True,
    )
    return dense, usual


def _complexity(model: str, changes: tuple[str, ...] = (), retrain: tuple[str, ...] = ()) -> tuple[Arm, ...]:
    """Return the four modes on one model, with the targets of the abstract and half of the latency, and the usual."""
    dense, usual = _compared(model, changes)
    usual = Arm(**{**vars(usual), "changes": (*usual.changes, *retrain)})
    targets = {
        "PA": ("params", "keep_params", 0.3),
        "FA": ("macs", "keep_macs", 0.5),
        "MA": ("memory", "keep_memory", 0.5),
        "LA": ("latency", "keep_latency", 0.5),
    }
    epochs = tuple(change.replace("step.0.epochs", "step.1.epochs") for change in changes)
    modes = (
        Arm(
            label=f"{model} {name}",
            recipe="complexity",
            changes=(
                f"model={model}",
                *epochs,
                "step.0.keep_macs=",
                f"step.0.{keep}={share}",
                f"step.0.complexity.mode={mode}",
            ),
            dense=dense.label,
            against=usual.label,
        )
        for name, (mode, keep, share) in targets.items()
    )
    return dense, usual, *modes


def _without(model: str, method: str, changes: tuple[str, ...] = ()) -> Arm:
    """Return the training of a method that brings channels to zero, without the method: the dense network."""
    settings = (f"model={model}", *changes, "step.0.method=")
    return Arm(label=f"{model} as for {method}, dense", recipe=f"oto-{method.lower()}", changes=settings)


def _with(model: str, method: str, dense: Arm, changes: tuple[str, ...] = ()) -> Arm:
    """Return that training with the method."""
    settings = (f"model={model}", *changes)
    return Arm(label=f"{model} {method}", recipe=f"oto-{method.lower()}", changes=settings, dense=dense.label)


SMALL = ("images=10000",)  # ... and a tenth of the epochs: some seconds an epoch of ResNet-20 on two cores
# HESSO and DHSPG in one and the same training, so that one dense network serves both.
SHORT = (*SMALL, "step.0.epochs=12", "step.0.milestones=[0.5, 0.75]")
FULL_HESSO = _without("resnet18", "HESSO")
SHORT_DENSE = _without("resnet20", "HESSO", SHORT)

# Trained as the recipe `combine-net` trains.
AS_COMBINED = ("step.0.schedule=cosine", "step.0.nesterov=true", "step.0.decay=weights", "step.0.warmup=0.2")
SMALL_DENSE = Arm(
    label="resnet20 dense", recipe="dense", changes=("model=resnet20", *SMALL, "step.0.epochs=12", *AS_COMBINED)
)


def _combined(order: str, changes: tuple[str, ...] = ()) -> Arm:
    """Return Combine-Net's pruning and retraining of the small dense network, its rates found in some order."""
    return Arm(
        label=f"resnet20 {order}",
        recipe="combine-net",
        changes=("model=resnet20", *SMALL, "step.2.epochs=6", *changes),
        dense=SMALL_DENSE.label,
        from_dense=True,
    )


@dataclass(frozen=True, kw_only=True)
class Flips:
    """The arms that FlipOut is compared with, for one network.

    Args:
        model: its name.
        train: changes of the training.
        events: how often half of the weights that are left are taken; each makes a sparsity.
        to_end: of those, with noise to the end of the training, as published.
        few: of those, for random weights and those taken before the training.
        hoyer: strengths of the Hoyer-Square penalty.
    """

    model: str
    train: tuple[str, ...] = ()
    events: tuple[int, ...] = (2, 4, 6, 8, 10)
    to_end: tuple[int, ...] = (2, 4, 6, 8, 10)
    few: tuple[int, ...] = (10,)
    hoyer: tuple[float, ...] = (6e-5, 1e-4, 3e-4)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, dense first."""
        return (
            Arm(label=f"{self.model} dense", recipe="flipout", changes=(*self._train(0), "step.0.method=")),
            *(self._taken("FlipOut", events) for events in self.events),
            *(
                self._taken("FlipOut, noise to the end", events, "step.0.method.0.noise_end=1.0")
                for events in self.to_end
            ),
            *(self._taken("magnitude", events, *self._gradual("l1", events)) for events in self.events),
            *(self._taken("random", events, *self._gradual("random", events)) for events in self.few),
            *(self._begun("SNIP", events) for events in self.few),
            *(self._begun("SynFlow", events) for events in self.few),
            *(self._arm(f"Hoyer-Square {strength:g}", "flipout", *self._hoyer(strength)) for strength in self.hoyer),
            self._arm("FlipOut, int8", "flipout", "step.1.kind=quantize"),
        )

    def _taken(self, name: str, events: int, *changes: str) -> Arm:
        method = "step.0.method.0"
        share = (f"{method}.sparsity={1 - 0.5**events}", f"{method}.events={events}")
        return self._arm(f"{name} {1 - 0.5**events:.2%}", "flipout", *share, *changes, series=name)

    def _begun(self, name: str, events: int) -> Arm:
        changes = (f"step.0.sparsity={1 - 0.5**events}", f"step.0.criterion={name.lower()}")
        return self._arm(f"{name} {1 - 0.5**events:.2%}", "prune-at-init", *changes, train=1)

    def _gradual(self, criterion: str, events: int) -> tuple[str, ...]:
        """Return the settings of the same events at the same times, by another criterion."""
        apart = 1 / (events + 1)
        settings = {"kind": "gradual", "criterion": criterion, "curve": "geometric"}
        settings |= {"start": f"{apart:.6f}", "end": f"{1 - apart:.6f}"}
        return tuple(f"step.0.method.0.{name}={value}" for name, value in settings.items())

    def _hoyer(self, strength: float) -> tuple[str, ...]:
        method = "step.0.method.0"
        return f"{method}.kind=hoyer", f"{method}.strength={strength}", f"{method}.sparsity=", f"{method}.events="

    def _arm(self, name: str, recipe: str, *changes: str, train: int = 0, series: str = "") -> Arm:
        settings = (*self._train(train), *changes)
        dense = f"{self.model} dense"
        return Arm(label=f"{self.model} {name}", recipe=recipe, changes=settings, dense=dense, series=series)

    def _train(self, step: int) -> tuple[str, ...]:
        """Return the network, and the changes of the training, which is the recipe's step of that number."""
        return f"model={self.model}", *(change.replace("step.0.", f"step.{step}.") for change in self.train)


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

    def _arm(self, name: str, recipe: str, *changes: str, from_dense: bool = True, **rest: str) -> Arm:
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


SYSTEMS: dict[str, System] = {
    "complexity": System(
        about="prune before training by each layer's share of params, MACs, memory, or measured latency (PA FA MA LA)",
        citation=(
            "Zawish, Davy, Abraham, Complexity-Driven Model Compression for Resource-Constrained Deep Learning on "
            "Edge, IEEE Trans. AI 5(8):3886-3901, 2024; arXiv 2208.12816"
        ),
        published=(
            Published(setting="MobileNetV2, PA", accuracy_note="without loss", params_cut=0.70),
            Published(setting="MobileNetV2, FA", accuracy_note="without loss", macs_cut=0.50),
            Published(setting="MobileNetV2, MA", accuracy_note="without loss", memory_cut=0.50),
            Published(setting="all: about 60 % less training time than train, prune, retrain"),
        ),
        arms=tuple(arm for model in ("vgg16_bn", "resnet56", "mobilenet_v2") for arm in _complexity(model)),
        small=_complexity("resnet20", (*SMALL, "step.0.epochs=12"), ("step.2.epochs=6",)),
    ),
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
    "flipout": System(
        about="weights that flip between plus and minus while a network trains go first; beside magnitude and others",
        citation=(
            "Apostol, Stol, Forre, Pruning by Leveraging Training Dynamics, AI Communications 35(2):65-85, 2022; "
            "FlipOut, BNAIC 2020, arXiv 2009.02594"
        ),
        published=tuple(
            Published(
                setting=f"{network}, CIFAR-10, 350 epochs: {method}",
                accuracy=accuracy,
                nonzero_cut=sparsity,
                source="the authors' repository",
            )
            for network, sparsity, flipout, magnitude in (
                ("VGG-19", 0.9375, 0.928, 0.937),
                ("VGG-19", 0.999, 0.8739, 0.8289),
                ("ResNet-18", 0.9375, 0.945, 0.951),
                ("ResNet-18", 0.999, 0.825, 0.8063),
                ("DenseNet-121", 0.9375, 0.900, 0.909),
                ("DenseNet-121", 0.999, 0.7413, 0.6794),
            )
            for method, accuracy in (("FlipOut", flipout), ("global magnitude", magnitude))
        ),
        arms=tuple(arm for model in ("vgg19_bn", "resnet18", "timm:densenet121") for arm in Flips(model=model).arms),
        small=Flips(
            model="vgg16_bn",
            train=(*SMALL, "width=0.25", "step.0.epochs=10"),
            events=(4, 6, 8),
            to_end=(4, 8),
            few=(6,),
            hoyer=(1e-4,),
        ).arms,
        columns=("nonzero cut", "file", "latency", "training"),
    ),
    "combine-net": System(
        about="the knee of each layer's sensitivity curve, BatchNorm adapted, as its rate; retrained by distillation",
        citation="Wang, Li, Zhang, Combine-Net: An Improved Filter Pruning Algorithm, Information 12(7):264, 2021",
        published=(
            Published(setting="VGG-16, CIFAR-10", accuracy_note="without loss", params_cut=0.95, macs_cut=0.83),
            Published(setting="ResNet-50, CIFAR-100", accuracy_note="without loss", params_cut=0.71, macs_cut=0.41),
        ),
        arms=(
            Arm(label="vgg16_bn cifar10", recipe="combine-net"),
            Arm(label="resnet50 cifar100", recipe="combine-net", changes=("model=resnet50", "data=cifar100")),
        ),
        small=(SMALL_DENSE, _combined("at once"), _combined("one by one", ("step.1.knee.order=one_by_one",))),
    ),
    "eagleeye": System(
        about="random widths, ranked by the accuracy after BatchNorm was recalibrated: the baseline for allocations",
        citation="Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020",
        published=(
            Published(
                setting="ResNet-50, ImageNet: 4.089 to 2.057 GMACs, 25.50 to 14.37 M params",
                accuracy=0.7637,
                params_cut=1 - 14.37 / 25.50,
                macs_cut=1 - 2.057 / 4.089,
                source="the authors' repository",
            ),
        ),
        arms=(Arm(label="resnet56", recipe="eagleeye"),),
        small=(
            Arm(
                label="resnet20",
                recipe="eagleeye",
                changes=("model=resnet20", *SMALL, "step.0.epochs=12", "step.2.epochs=6"),
            ),
        ),
    ),
    "oto": System(
        about="groups that training itself drives to zero (HESSO, DHSPG), then removed exactly",
        citation="Chen et al., OTOv2, ICLR 2023; Chen et al., OTOv3, arXiv 2312.09411; Chen et al., HESSO, 2024",
        published=(
            Published(
                setting="HESSO, ResNet-18, CIFAR-10, sparsity 0.7, 100 epochs; dense 93.02 %",
                accuracy=0.928,
                accuracy_note="92.8 to 92.9 %",
                params_cut=0.92,
                source="the authors' example",
            ),
            *(
                Published(
                    setting=f"DHSPG, {setting}, CIFAR-10, 300 epochs",
                    accuracy=accuracy,
                    params_cut=params,
                    macs_cut=macs,
                    source="the authors' OTOv2 notebook",
                )
                for setting, accuracy, params, macs in (
                    ("ResNet-18, sparsity 0.7", 0.9286, 0.912, 0.797),
                    ("VGG-16-BN, sparsity 0.79", 0.9327, 0.950, 0.734),
                    ("ResNet-50, sparsity 0.8", 0.9439, 0.964, 0.900),
                )
            ),
        ),
        arms=(
            FULL_HESSO,
            _with("resnet18", "HESSO", FULL_HESSO),
            *(
                arm
                for model, sparsity in (("resnet18", 0.7), ("vgg16_bn", 0.79), ("resnet50", 0.8))
                for dense in (_without(model, "DHSPG"),)
                for arm in (dense, _with(model, "DHSPG", dense, (f"step.0.method.0.sparsity={sparsity}",)))
            ),
        ),
        small=(
            SHORT_DENSE,
            _with("resnet20", "HESSO", SHORT_DENSE, SHORT),
            # The published penalty needs hundreds of epochs to bring a channel to zero.
            _with("resnet20", "DHSPG", SHORT_DENSE, (*SHORT, "step.0.method.0.penalty=0.05")),
        ),
    ),
}
