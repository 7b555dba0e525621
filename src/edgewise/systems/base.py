"""What a published system is: what was published, and the runs that stand beside it.

Published figures are copied from the papers' abstracts or the authors' own code, as each row says; they are never ours.
"""

from __future__ import annotations

from dataclasses import dataclass

ABSTRACT = "abstract only"
SMALL = ("images=10000",)  # ... and a tenth of the epochs: some seconds an epoch of ResNet-20 on two cores


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
        weights_ratio: how many times fewer bytes the weights take, as the authors count them.
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
    weights_ratio: float | None = None
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
        teachers: the labels of the arms that the first method of its first step learns from.
        against: the label of the arm whose training time this one's is compared with.
    """

    label: str
    recipe: str
    changes: tuple[str, ...] = ()
    dense: str = ""
    from_dense: bool = False
    begins_as: str = ""
    series: str = ""
    teachers: tuple[str, ...] = ()
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
        cost: what its chart shows accuracy against at first, a column of `edgewise.charts.RELATIVE`.
        tuning: what is changed where dense trainings start from given weights.
    """

    about: str
    citation: str
    published: tuple[Published, ...]
    arms: tuple[Arm, ...]
    small: tuple[Arm, ...]
    columns: tuple[str, ...] = ("params cut", "MACs cut", "memory cut", "latency", "file", "training")
    cost: str = "latency_ratio"
    tuning: tuple[str, ...] = ()
