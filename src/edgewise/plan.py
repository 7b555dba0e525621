"""A recipe from a budget: measure what the dense network costs, in float and in int8, and write what is left to do.

The float network is taken as it is where it is within the budget; the int8 one where that is, or whichever of the two
needs less pruning. int8 is out of question where quantising alone loses more than `--max-drop`; where nothing was said
of accuracy, more than a point counts only as long as float does not need far more pruning.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from edgewise import models
from edgewise.budget import COLUMNS, Limits
from edgewise.context import Context
from edgewise.cost import cost_of
from edgewise.data import Dataset, Kind, kind_of
from edgewise.devices.local import available_cores, machine
from edgewise.devices.measure import measure
from edgewise.errors import BudgetError, RunFolderError, UserError, nearest
from edgewise.export.network import TENSORS
from edgewise.export.onnx import export
from edgewise.export.tail import append_tail
from edgewise.folder import choose
from edgewise.graph import trace
from edgewise.layout import RECIPE
from edgewise.progress import Progress
from edgewise.prune.candidates import CARE
from edgewise.quantize import Quantize, activation_cost, quantize_static
from edgewise.recipe import Measure, Recipe, parse, read
from edgewise.run import Finished, check_reach, check_steps, compress, prepare
from edgewise.train import evaluate
from edgewise.train.config import Precision
from edgewise.units import format_quantity

DENSE_EPOCHS, EPOCHS = 30, 10
# How a network is trained from nothing and further, by what it is for: what it knows would be lost at the first's rate.
BOXES = {"optimizer": "adamw", "weight_decay": 0.01, "batch": 8}
PAIRS = {"optimizer": "adamw", "batch": 8, "augment": ["flip"]}
TRAININGS: dict[Kind, tuple[dict[str, Any], dict[str, Any]]] = {
    "classification": ({}, {"lr": 0.02}),
    "detection": ({**BOXES, "lr": 0.004}, {**BOXES, "lr": 0.002}),
    "steganalysis": ({**PAIRS, "lr": 0.002}, {**PAIRS, "lr": 0.001}),
}
MAY_LOSE_PT = 1.0  # by quantising, where the budget says nothing of accuracy
SECONDS = 5.0
RUNTIMES = get_args(get_type_hints(Measure)["runtime"])  # those that a recipe's artifacts run in
# What is lost to first order, in one unit over all groups, so that it adds up: a channel's layers, a branch's channels.
IMPORTANCE = {"importance": "taylor", "reduce": "sum", "normalize": "none"}
FAR = 2.0  # times: so much more pruning outweighs what int8 loses
ATTEMPTS = 3
CLOSER = 0.97  # of what a missed limit is tightened to beside the excess, for the next attempt


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted: a network for a budget.

    Args:
        model, data, seed: as in a recipe.
        weights: of the dense network, trained on these data; without them it is trained first.
        pretrained: weights that its training starts from, of other data, and of as many classes as there may be.
        budget: the limits.
        runtime: where the artifact will run.
        threads: that it may use there.
        images: how many training images are used; by default all.
        skip_bad: leave out boxes that are none.
        epochs: of recovery after pruning.
        dense_epochs: of the dense network's training; fewer are enough from pretrained weights.
        precision: of the training.
        name: of the run's default folder.
    """

    model: str
    data: str
    budget: Limits
    weights: str | None = None
    pretrained: str | None = None
    seed: int = 0
    runtime: str = "onnxruntime"
    threads: int = 1
    images: int | None = None
    skip_bad: bool = False
    epochs: int = EPOCHS
    dense_epochs: int = DENSE_EPOCHS
    precision: Precision = "float32"
    name: str = "run"

    def __post_init__(self) -> None:
        for name in ("epochs", "dense_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} = {getattr(self, name)}: at least 1")
        if not 1 <= self.threads <= (cores := available_cores()):
            raise ValueError(f"threads = {self.threads}: this machine has {cores} cores to use; give 1 to {cores}")
        if self.runtime not in RUNTIMES:
            raise ValueError(f'runtime = "{self.runtime}": {nearest(self.runtime, RUNTIMES)}')
        if self.weights and self.pretrained:
            raise ValueError("pretrained: the dense network is trained from these, and weights are what that gives")
        if not self.budget.by_column():
            raise ValueError("max-drop says what may be lost, not what must be gained: limit something else too")

    @property
    def kind(self) -> Kind:
        """What its data are, and so what the network is for."""
        return kind_of(self.data)

    @property
    def measure_step(self) -> dict[str, Any]:
        """The step that measures the artifact where it will run."""
        return {"kind": "measure", "runtime": self.runtime, "threads": self.threads, "seconds": SECONDS}

    def recipe(self, steps: list[dict[str, Any]], *, dense: bool = False, notes: tuple[str, ...] = ()) -> Recipe:
        """Return a recipe of these steps, or one that only trains the dense network."""
        table: dict[str, Any] = {"model": self.model, "data": self.data, "seed": self.seed, "step": steps}
        if self.images is not None:
            table["images"] = self.images
        if self.skip_bad:
            table["skip_bad"] = True
        if dense:
            start = {} if self.pretrained is None else {"weights": self.pretrained}
            return parse({**table, **start, "name": f"{self.name}-dense"}, "compress")
        budget = {name: value for name, value in dataclasses.asdict(self.budget).items() if value is not None}
        table |= {"name": self.name, "budget": budget, "notes": notes}
        return parse(table | ({} if self.weights is None else {"weights": self.weights}), "compress")


@dataclass(frozen=True)
class Dense:
    """What the unpruned network costs as an artifact of one precision.

    Args:
        figures: by the columns of results.json that a budget limits.
        accuracy: on held-out images, a fraction.
    """

    figures: Mapping[str, float]
    accuracy: float


@dataclass(frozen=True)
class Decision:
    """What is to be done with the dense network, and why, in words."""

    precision: str
    prune: bool
    notes: tuple[str, ...]


def run_name(model: str) -> str:
    """Return a name for a run's folder, of the letters and digits of a model's name.

    >>> run_name("timm:resnet18.a1_in1k"), run_name("nets/mine.py:small")
    ('timm-resnet18.a1_in1k', 'mine-small')
    """
    return re.sub(r"[^\w.]+", "-", re.sub(r"^.*/|\.py(?=:)", "", model)).strip("-.") or "run"


def training_precision() -> Precision:
    """Return the faster precision of training here: bfloat16 on a GPU and where the processor computes in it."""
    fast = torch.cuda.is_available() or not {"amx_bf16", "avx512_bf16"}.isdisjoint(machine()["cpu_flags"])
    return "bfloat16" if fast else "float32"


def compress_within(
    wish: Wish,
    out: Path | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Finished:
    """Make a network that is within a budget, and measure that it is.

    The recipe is chosen by measurement and written into the run folder. Where the finished artifact's latency, size or
    memory misses its limit though the candidate held it, another run with tighter widths is made, in a folder beside
    it (``<out>.attempt-2``); the one that is nearest to its limits is returned.

    Args:
        wish: the network, its data, the budget.
        out: the run's folder; by default ``runs/<name>``, numbered when taken. The dense network is trained in
            ``<out>-dense``, where no weights are given, and is found there again by the next wish.
        resume: go on with the run that was interrupted in that folder, as was decided for it.
        progress: is told (what, done, total) while something lasts.
        log: is given each row of results.json as it is known.
        tell: is told what was decided, and why.

    Raises:
        UserError: what `edgewise.run.compress` raises, and a budget that no widths can meet.
    """
    dense_place = (out or Path("runs") / wish.name).with_name(f"{(out or Path(wish.name)).name}-dense")
    trained = dataclasses.replace(wish, weights=wish.weights or str(dense_place / TENSORS), pretrained=None)
    tentative = plan(trained, Decision("int8", True, ()))
    if wish.weights is None and (dense_place / RECIPE).exists():
        check_dense(wish, dense_place)
    try:
        folder = choose(tentative, out, resume, same=False)
    except RunFolderError:
        if not resume or not (dense_place / RECIPE).exists():
            raise
        folder, resume = choose(tentative, out, False), False  # the dense network's training was interrupted
    places = [folder, *(folder.with_name(f"{folder.name}.attempt-{n}") for n in range(2, ATTEMPTS + 1))]
    for place in places[1:]:
        choose(tentative, place, resume and (place / RECIPE).exists(), same=False)
    images: Dataset | None = None
    if resume:
        begun = read(folder / RECIPE)
        check_budget(folder, begun.budget, wish.budget)
        decision = decided(begun)
    else:
        context, model = prepare(wish.recipe([{"kind": "export"}, wish.measure_step]), progress)
        images = context.data
        with without_steps_name():
            check_steps(tentative, model, context.example)
        if wish.weights is None:
            if not (dense_place / RECIPE).exists():
                with without_steps_name():
                    check_precisions(trained, context, model, progress)
            train_dense(wish, dense_place, images, progress, log)
            model = models.load_weights(model, dense_place / TENSORS)
        decision = decide(survey(context, model, wish.threads, wish.runtime), wish.budget)
        for note in decision.notes:
            tell(note)

    def carry_out(place: Path, decision: Decision, share: float) -> Finished:
        going_on = resume and (place / RECIPE).exists()
        with without_steps_name():
            recipe = plan(trained, decision, share)
            return compress(recipe, place, resume=going_on, images=images, progress=progress, log=log)

    finished = best_of(places, decision, carry_out, tell)
    if advice := _after_a_drop(finished, wish.epochs):
        tell(advice)
    return finished


def best_of(
    places: Sequence[Path],
    decision: Decision,
    carry_out: Callable[[Path, Decision, float], Finished],
    tell: Callable[[str], None],
) -> Finished:
    """Try with tighter widths as long as what was measured is over a limit, and return what is nearest to its limits.

    Args:
        places: the folder of each attempt.
        decision: what is done first; an artifact that needed no pruning and misses is pruned after all.
        carry_out: ``(place, decision, share of the measured limits that pruning may use) -> finished``.
        tell: is told why there is another attempt.
    """
    found: list[Finished] = []
    share = 1.0
    for place in places:
        if found:
            name, over = _most_over(found[-1])
            if over <= 1:
                break
            share *= CLOSER / over
            missed = f"measured at {over:.3f} times the {name} that is allowed"
            tell(f"{missed}; once more with tighter widths, in {place}")
            if not decision.prune:
                notes = (*decision.notes, f"{missed}, so it is pruned after all")
                decision = Decision(decision.precision, True, notes)
        try:
            found.append(carry_out(place, decision, share))
        except UserError as error:
            if not found:
                raise
            tell(f"no tighter widths were found: {error}")
            break
    return min(found, key=lambda finished: _most_over(finished)[1])


def _after_a_drop(finished: Finished, epochs: int) -> str:
    """Say what may help where accuracy is all that misses the budget; nothing where it is not."""
    missed = {name: row for name, row in (finished.results["budget"] or {}).items() if not row["met"]}
    if list(missed) != ["drop"] or missed["drop"]["value"] is None:
        return ""
    over = missed["drop"]["value"] - missed["drop"]["limit"]
    kinds = [row["kind"] for row in finished.results["rows"]]
    what = f"recovery for more than {epochs} epochs (--epochs)" if "train" in kinds else "a budget that float can hold"
    return f"{over:.2f} points more were lost than may be; {what} or a looser limit may help"


def decided(recipe: Recipe) -> Decision:
    """Return what was decided for a recipe that was written by `plan`."""
    kinds = [step.kind for step in recipe.step]
    return Decision("int8" if "quantize" in kinds else "float32", "prune" in kinds, recipe.notes)


@contextmanager
def without_steps_name() -> Iterator[None]:
    """Leave the name of the recipe's step out of a refusal: who wishes for a budget wrote no steps."""
    try:
        yield
    except BudgetError as error:
        raise type(error)(re.sub(r"^step\S* \(prune\): |^step \S+: ", "", str(error))) from error


def check_precisions(wish: Wish, context: Context, model: nn.Module, progress: Progress | None) -> None:
    """Refuse what no widths can meet before hours are spent on the dense network's training.

    Raises:
        BudgetError: neither in int8 nor in float can candidates be made that are within the budget.
    """
    refused = None
    for precision in ("int8", "float32"):
        try:
            return check_reach(plan(wish, Decision(precision, True, ())), model, context.example, progress)
        except BudgetError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _most_over(finished: Finished) -> tuple[str, float]:
    """Return which measured figure is the furthest over its limit, and how far; 0 where all are within."""
    budget = finished.results["budget"] or {}
    missed = {name: row for name, row in budget.items() if COLUMNS[name].column in CARE and not row["met"]}
    over = {name: row["value"] / row["limit"] for name, row in missed.items() if row["value"] and row["limit"]}
    return max(over.items(), key=lambda item: item[1], default=("", 0.0))


def survey(context: Context, model: nn.Module, threads: int, runtime: str = "onnxruntime") -> dict[str, Dense]:
    """Measure what a network costs in float and in int8, and how accurate it is on held-out images.

    Args:
        context: its data, and where evaluation runs.
        model: the network with its weights.
        threads: that the runtime may use.
        runtime: where its artifacts run.
    """
    held = context.data.held
    cost = cost_of(trace(model, context.example))
    with TemporaryDirectory(prefix="edgewise-") as folder:
        floating = export(model, context.example, Path(folder) / "float32.onnx")
        quantize = Quantize()
        images = context.calibration(quantize.calibration, context.recipe.seed)
        whole = quantize_static(floating, Path(folder) / "int8.onnx", images, quantize, progress=context.progress)
        files = {"float32": floating, "int8": whole}
        if (tail := context.task.tail()) is not None:  # it runs on the device too
            for file in files.values():
                append_tail(file, tail)
        measured = measure(
            list(files.values()), runtime=runtime, threads=threads, seconds=SECONDS, progress=context.progress
        )
        accuracy = {
            "float32": evaluate(model, context.task, held, device=context.device),
            "int8": context.artifact_accuracy(whole, held),
        }
        return {
            precision: Dense(
                {
                    "macs": cost.macs,
                    "params": cost.params,
                    "file_bytes": path.stat().st_size,
                    "peak_activation_bytes": activation_cost(path).peak_activation_bytes,
                    "latency_s": found.latency_s,
                },
                accuracy[precision],
            )
            for (precision, path), found in zip(files.items(), measured, strict=True)
        }


def decide(dense: Mapping[str, Dense], budget: Limits) -> Decision:
    """Choose the precision, and say whether anything has to be pruned.

    Args:
        dense: by precision, "float32" and "int8".
        budget: shares in it are of the float network.
    """
    floating, whole = dense["float32"], dense["int8"]
    excess = {precision: _excess(one.figures, floating.figures, budget) for precision, one in dense.items()}
    over = {precision: each[0] for precision, each in excess.items()}
    lost_pt = round((floating.accuracy - whole.accuracy) * 100, 9)  # a float's last bit decides nothing
    may_lose_pt = MAY_LOSE_PT if budget.drop is None else budget.drop
    notes = [f"dense {precision}: {_told(one, budget)}" for precision, one in dense.items()]

    def decision(precision: str, why: str) -> Decision:
        prune = over[precision] > 1
        done = f"; {over[precision]:.2f} times what it may take, so it is pruned" if prune else "; nothing is pruned"
        return Decision(precision, prune, (*notes, f"{precision}: {why}{done}"))

    if over["float32"] <= 1:
        return decision("float32", "the dense float network is within the budget")
    if excess["int8"] > excess["float32"]:
        return decision("float32", "nearer to the budget than int8")
    if excess["int8"] == excess["float32"]:
        return decision("float32", "int8 is no nearer to the budget")
    far = budget.drop is None and over["float32"] > FAR * over["int8"]
    lost = f"loses {lost_pt:.2f} points on held-out training images"
    if lost_pt > may_lose_pt and not far:
        return decision("float32", f"int8 alone {lost}, {may_lose_pt:g} may go")
    instead = f", while float would have to be cut {over['float32']:.2f} times" if lost_pt > may_lose_pt else ""
    return decision("int8", f"nearer to the budget, and {lost}{instead}")


def plan(wish: Wish, decision: Decision, share: float = 1.0) -> Recipe:
    """Write the recipe that a decision comes to.

    Args:
        wish: what is wanted.
        decision: what was decided for it.
        share: of each measured limit that pruning may use.
    """
    steps: list[dict[str, Any]] = []
    _, recovery = TRAININGS[wish.kind]
    if decision.prune:
        step = {"kind": "prune", "allocate": "knapsack", "budget": True, "budget_share": share, **IMPORTANCE}
        steps.append(step)
        distil = {"kind": "distill_detector" if wish.kind == "detection" else "distill"}
        train = {"kind": "train", "epochs": wish.epochs, "precision": wish.precision, **recovery}
        steps.append({**train, "undo_if_worse": True, "method": [distil]})
    if decision.precision == "int8":
        steps.append({"kind": "quantize"})
    return wish.recipe([*steps, {"kind": "export"}, wish.measure_step], notes=decision.notes)


def check_budget(folder: Path, begun: Limits | None, wanted: Limits) -> None:
    """Refuse to go on for another budget than the one that a run's precision and widths were chosen for."""
    for field in dataclasses.fields(Limits):
        was, limit = getattr(begun, field.name, None), getattr(wanted, field.name)
        if was != limit:
            raise RunFolderError(
                f"{folder}: was begun for another budget: {field.name} was {was!r} and is {limit!r}; resume with that, "
                "or take another --out"
            )


def dense_recipe(wish: Wish) -> Recipe:
    """Return what trains the dense network, in a run of its own."""
    fresh, recovery = TRAININGS[wish.kind]
    train = {"kind": "train", "epochs": wish.dense_epochs, "precision": wish.precision}
    return wish.recipe([{**train, **(recovery if wish.pretrained else fresh)}, {"kind": "export"}], dense=True)


def check_dense(wish: Wish, place: Path) -> None:
    """Refuse a dense network that was trained for another wish before anything is measured for this one."""
    try:
        choose(dense_recipe(wish), place, True)
    except RunFolderError as error:
        other = str(error).partition(";")[0]
        raise RunFolderError(f"{other}; take another --out, for which one is trained anew, or --weights") from error


def train_dense(
    wish: Wish,
    place: Path,
    images: Dataset,
    progress: Progress | None,
    log: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Train the dense network in a run of its own, unless it is there."""
    going_on = (place / RECIPE).exists()
    compress(dense_recipe(wish), place, resume=going_on, images=images, progress=progress, log=log)


def _excess(figures: Mapping[str, float], reference: Mapping[str, float], budget: Limits) -> list[float]:
    """Return what each figure is of its limit, the worst first, and 1 for those that are within.

    Of a latency's limit less is taken: the room that the next measurement needs.
    """
    limits = budget.by_column()
    holds = {name: CARE[name].holds if name in CARE else 1.0 for name in limits}
    return sorted(
        (max(1.0, figures[n] / (holds[n] * limit.amount(reference[n]))) for n, limit in limits.items()), reverse=True
    )


def _told(dense: Dense, budget: Limits) -> str:
    """Say what a network costs of what the budget limits."""
    columns = {name: COLUMNS[name].column for name in budget.limits() if name != "drop"}
    figures = [f"{name} {format_quantity(column, dense.figures[column])}" for name, column in columns.items()]
    return ", ".join([*figures, f"accuracy {dense.accuracy:.2%} on held-out training images"])
