"""Systems that act on single weights and blocks: FlipOut, Net-Trim, PE-wise ternary networks, codebooks."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise.systems.base import SMALL, Arm, Published, System


@dataclass(frozen=True, kw_only=True)
class Flips:
    """The arms that FlipOut is compared with, for one network.

    Args:
        model: its name.
        train: changes of the training.
        events: how often half of the weights that are left are taken; each makes a sparsity.
        to_end: of those, with noise to the end of the training, as published.
        quiet: of those, without noise.
        gentle: of those, with a third of the noise.
        few: of those, for random weights and those taken before the training.
        hoyer: strengths of the Hoyer-Square penalty.
    """

    model: str
    train: tuple[str, ...] = ()
    events: tuple[int, ...] = (2, 4, 6, 8, 10)
    to_end: tuple[int, ...] = (2, 4, 6, 8, 10)
    quiet: tuple[int, ...] = (2, 4, 6, 8, 10)
    gentle: tuple[int, ...] = (4, 10)
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
            *(self._taken("FlipOut, no noise", events, "step.0.method.0.noise=0.0") for events in self.quiet),
            *(
                self._taken("FlipOut, a third of the noise", events, "step.0.method.0.noise=0.33")
                for events in self.gentle
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


PORTIONS = 4  # in which powers of two fix a network's weights
COSINE = ("step.0.schedule=cosine", "step.0.warmup=0.2")  # of short dense trainings


def from_dense(dense: Arm, recipe: str, name: str, *changes: str, series: str = "") -> Arm:
    """Return an arm of a recipe that starts from a dense arm's network, on the same data."""
    same = tuple(change for change in dense.changes if not change.startswith("step."))
    label = f"{dense.label.removesuffix(' dense')} {name}"
    return Arm(label=label, recipe=recipe, changes=(*same, *changes), dense=dense.label, from_dense=True, series=series)


def _dense(model: str, *changes: str) -> Arm:
    return Arm(label=f"{model} dense", recipe="dense", changes=(f"model={model}", *changes))


def _trimmed(dense: Arm, again: tuple[str, ...], gammas: tuple[float, ...], compared: float) -> tuple[Arm, ...]:
    """Return Net-Trim's arms: each gamma by the solver and by magnitude, and for one gamma everything else there is.

    Args:
        dense: the network's training.
        again: changes of the training afterwards.
        gammas: how far a layer's outputs may be off.
        compared: the one of them at which the other forms stand, and the training afterwards.
    """

    def arm(name: str, gamma: float, *changes: str, trained: bool = False) -> Arm:
        last, after = (again, ", trained again") if trained else (("step.2=",), "")
        settings = (*last, f"step.1.gamma={gamma}", *changes)
        return from_dense(dense, "net-trim", f"{name} {gamma}{after}", *settings, series=name + after)

    magnitude = "step.1.support=magnitude"
    return (
        dense,
        *(arm("convex", gamma) for gamma in gammas),
        *(arm("magnitude", gamma, magnitude) for gamma in gammas),
        arm("log-sum", compared, "step.1.form=log_sum"),
        arm("rows", compared, "step.1.form=rows"),
        arm("cascade", compared, "step.1.scheme=cascade"),
        arm("convex", compared, trained=True),
        arm("magnitude", compared, magnitude, trained=True),
    )


def _pe_ternary(dense: Arm, train: tuple[str, ...], sparsity: float, compared: float) -> tuple[Arm, ...]:
    """Return the ternary network, with blocks at zero, and the ablation of the clipped penalty in three seeds.

    Args:
        dense: the network's training.
        train: changes of the joint training.
        sparsity: the share of the weights in blocks of zeros that is asked for.
        compared: the share at which clipped and plain penalty are compared.
    """
    plain, share = "step.1.method.1.clip=none", "step.1.method.1.sparsity"

    def arm(name: str, *changes: str, series: str = "") -> Arm:
        return from_dense(dense, "pe-ternary", name, *train, *changes, series=series)

    ablation = (
        arm(f"{name} {compared:.0%}, seed {seed}", *changes, f"{share}={compared}", f"seed={seed}", series=name)
        for seed in range(3)
        for name, changes in (("clipped", ()), ("plain lasso", (plain,)))
    )
    return (
        dense,
        arm("ternary alone", "step.1.method.1="),
        arm(f"clipped {sparsity:.0%}", f"{share}={sparsity}", series="clipped"),
        *ablation,
    )


def codebooks(
    dense: Arm, train: tuple[str, ...], bits: tuple[int, ...], powers: tuple[int, ...] = (5, 3)
) -> tuple[Arm, ...]:
    """Return codebooks of some widths, and the others.

    Args:
        dense: the network's training.
        train: changes of the training of the values.
        bits: of a code of k-means.
        powers: bits of a code of powers of two; their training has an epoch for each of the four portions, at least.
    """
    method = "step.1.method.0"

    def arm(name: str, *changes: str, series: str = "") -> Arm:
        return from_dense(dense, "codebook", name, *train, *changes, series=series)

    given = (int(change.rpartition("=")[2]) for change in train if change.startswith("step.1.epochs="))
    epochs = max(PORTIONS, *given)
    two = (f"{method}.kind=powers_of_two", f"{method}.gradient=", f"step.1.epochs={epochs}")
    return (
        dense,
        *(arm(f"k-means {each} bits", f"{method}.bits={each}", series="k-means") for each in bits),
        arm("ternary codebook", f"{method}.values=ternary"),
        *(arm(f"powers of two {each} bits", *two, f"{method}.bits={each}", series="powers of two") for each in powers),
    )


WEIGHTS: dict[str, System] = {
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
            quiet=(4, 6, 8),
            gentle=(4,),
            few=(6,),
            hoyer=(1e-4,),
        ).arms,
        columns=("nonzero cut", "file", "latency", "training"),
        cost="nonzero",
    ),
    "net-trim": System(
        about="each layer's sparsest weights that still compute the same, from images without labels; beside magnitude",
        citation=(
            "Aghasi, Abdi, Nguyen, Romberg, Net-Trim, NIPS 2017; Aghasi, Abdi, Romberg, Fast Convex Pruning of Deep "
            "Neural Networks, SIAM J. Math. Data Sci. 2020, arXiv 1806.06457"
        ),
        published=(
            Published(setting="fully connected and convolutional networks; figures are plotted, none is stated"),
        ),
        arms=_trimmed(
            _dense("resnet18", "step.0.epochs=100"), ("step.2.epochs=10",), gammas=(0.05, 0.1, 0.2, 0.3), compared=0.2
        ),
        small=_trimmed(
            _dense("resnet20", *SMALL, *COSINE, "width=0.5", "step.0.epochs=10"),
            ("step.2.epochs=2",),
            gammas=(0.1, 0.2, 0.3),
            compared=0.2,
        ),
        columns=("nonzero cut", "file", "packed", "latency"),
        cost="nonzero",
    ),
    "pe-ternary": System(
        about="ternary weights with blocks at zero that processing elements skip; a clipped penalty beside a plain one",
        citation=(
            "Yang, He, Fan, Harmonious Coexistence of Structured Weight Pruning and Ternarization for Deep Neural "
            "Networks, AAAI 2020, doi 10.1609/aaai.v34i04.6138"
        ),
        published=(
            Published(
                setting="ResNet-18, ImageNet, by 16 / (1 - s)", accuracy_note="1.74 points less", weights_ratio=21.0
            ),
        ),
        arms=_pe_ternary(_dense("resnet18", "step.0.epochs=100"), ("step.1.epochs=60",), sparsity=0.25, compared=0.5),
        small=_pe_ternary(
            _dense("resnet20", *SMALL, *COSINE, "step.0.epochs=10"), ("step.1.epochs=4",), sparsity=0.25, compared=0.4
        ),
        columns=("zero blocks", "16/(1-s)", "file", "packed", "PE array", "latency"),
        cost="file_bytes",
    ),
    "codebook": System(
        about="weights that share a few values a layer, which are trained: k-means, ternary, powers of two",
        citation=(
            "Han, Mao, Dally, Deep Compression, ICLR 2016, arXiv 1510.00149; Zhou et al., Incremental Network "
            "Quantization, ICLR 2017, arXiv 1702.03044"
        ),
        published=(
            Published(
                setting="AlexNet, ImageNet, pruned before, Huffman codes after",
                accuracy_note="same",
                weights_ratio=35.0,
            ),
            Published(
                setting="VGG-16, ImageNet, pruned before, Huffman codes after", accuracy_note="same", weights_ratio=49.0
            ),
        ),
        arms=codebooks(_dense("resnet18", "step.0.epochs=100"), ("step.1.epochs=10",), bits=(8, 6, 5, 4, 3, 2)),
        small=codebooks(
            _dense("vgg16_bn", *SMALL, *COSINE, "width=0.25", "step.0.epochs=10"),
            ("step.1.epochs=4",),
            bits=(5, 4, 3, 2),
            powers=(5,),
        ),
        columns=("file", "packed", "latency", "training"),
        cost="file_bytes",
    ),
}
