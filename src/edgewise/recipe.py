"""The recipe: a TOML file becomes one frozen, validated value, or one line that says what is wrong and where.

The steps' settings are the plain dataclasses that live beside their methods; this module lists them, checks keys and
types (pydantic, strictly) and the order of the steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from edgewise.budget import Limits
from edgewise.cost.budget import Limit
from edgewise.distill.data_free import DataFree
from edgewise.distill.detector import DistillDetector
from edgewise.distill.distillation import Distill
from edgewise.errors import RecipeError, nearest
from edgewise.prune.config import Prune
from edgewise.prune.dhspg import Dhspg
from edgewise.prune.hesso import Hesso
from edgewise.quantize.codebook import ShareWeights
from edgewise.quantize.config import Quantize
from edgewise.quantize.inq import PowersOfTwo
from edgewise.quantize.schemes import CODES_ONLY, schemes_for
from edgewise.quantize.ternary import Ternary
from edgewise.sparse.config import NetTrim, Sparsify
from edgewise.sparse.flipout import FlipOut
from edgewise.sparse.gradual import Gradual
from edgewise.sparse.hoyer import HoyerSquare
from edgewise.sparse.keep_zeros import KeepZeros
from edgewise.sparse.pe import PeLasso
from edgewise.train.config import TrainConfig

ZEROING = (Gradual, FlipOut, HoyerSquare, PeLasso)  # methods that make single weights zero
VALUED = (Ternary, ShareWeights, PowersOfTwo)  # methods that leave weights of few values


def _check_together(methods: Sequence[Any]) -> None:
    """Refuse methods that undo one another in one training, or in the order that they are listed in.

    Raises:
        ValueError: which ones, and what to do.
    """
    of = {type(method): place for place, method in enumerate(methods)}
    few = [method.kind for method in methods if isinstance(method, VALUED)]
    if len(few) > 1:
        raise ValueError(f"{' and '.join(few)} each say which values weights have: take one")
    shared = next((method for method in methods if isinstance(method, ShareWeights)), None)
    for place, method in enumerate(methods):
        if isinstance(method, ZEROING) and shared:
            raise ValueError(
                f"share_weights keeps its codes, and {method.kind} would take weights from them: train twice"
            )
        if isinstance(method, ZEROING) and of.get(PowersOfTwo, place) < place:
            raise ValueError(f'{method.kind} takes weights that "powers_of_two" has fixed: list it before that')
        if isinstance(method, KeepZeros) and shared and shared.values == "kmeans" and not shared.zero:
            raise ValueError("share_weights has no value of 0 for what keep_zeros keeps: add zero = true")
        if isinstance(method, Hesso | Dhspg) and of.get(Ternary, place) < place:
            raise ValueError(
                f'{method.kind} follows the channels through the network as it is: list it before "ternary"'
            )


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """A training step: how to train, and the methods that act meanwhile, in their order.

    Args:
        method: those methods.
        undo_if_worse: leave the network as it was where the training cost accuracy on the held-out images.
    """

    method: tuple[
        Annotated[
            Distill
            | DistillDetector
            | DataFree
            | Hesso
            | Dhspg
            | KeepZeros
            | Gradual
            | FlipOut
            | HoyerSquare
            | Ternary
            | PeLasso
            | ShareWeights
            | PowersOfTwo,
            Field(discriminator="kind"),
        ],
        ...,
    ] = ()
    undo_if_worse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_together(self.method)
        if self.data_free and self.augment:
            raise ValueError(f"augment = {list(self.augment)}: generated images are not augmented, so augment = []")
        if self.data_free and (
            self.undo_if_worse or any(isinstance(method, Distill | DistillDetector) for method in self.method)
        ):
            raise ValueError("data_free has no images that distill or undo_if_worse could ask about: leave them out")
        for method in self.method:
            if isinstance(method, Distill) and method.cache and self.augment:
                raise ValueError(
                    f"augment = {list(self.augment)} changes the images whose answers cache keeps: augment = []"
                )
            if isinstance(method, Distill) and method.loss == "dkd" and "mixup" in self.augment:
                raise ValueError('loss = "dkd" needs one right class per image, and mixup blends two: leave one out')

    @property
    def distils(self) -> bool:
        """Whether it needs this run's dense network as a teacher."""
        return any(isinstance(method, Distill | DistillDetector) and not method.teachers for method in self.method)

    @property
    def data_free(self) -> bool:
        """Whether it reads no data."""
        return any(isinstance(method, DataFree) for method in self.method)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The other networks that it learns from."""
        return tuple(name for method in self.method for name in getattr(method, "teachers", ()))

    @property
    def keeps_zeros(self) -> bool:
        """Whether single weights that are zero stay so."""
        return self.makes_zeros or any(isinstance(method, KeepZeros) for method in self.method)

    @property
    def tile(self) -> tuple[int, int] | None:
        """The blocks that this training prunes, if it does."""
        return next((method.tile for method in self.method if isinstance(method, PeLasso)), None)

    @property
    def compresses(self) -> bool:
        """Whether weights become zero, or of few values."""
        return self.makes_zeros or bool(self.values)

    @property
    def values(self) -> str:
        """The kind of the method that leaves weights of few values, if there is one."""
        return next((method.kind for method in self.method if isinstance(method, VALUED)), "")

    @property
    def makes_zeros(self) -> bool:
        """Whether single weights become zero."""
        return any(isinstance(method, ZEROING) for method in self.method)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the artifact that is shipped, and prove it equal to the network.

    Args:
        format: "onnx" runs in ONNX Runtime and OpenVINO at any batch size; the others are made of it for one image,
            and shipped in its place: "openvino", "executorch" for XNNPACK, "litert".
        pack: write the network's tensors to `model.packed` too, each as small as it goes without losing a bit: ternary
            codes, codebooks, bitmaps of what is not zero. `file_bytes` is that file's then. No runtime computes on it;
            ``edgewise export RUN OUT.onnx`` makes one of it that they do.
        codes: keep weights of few values as codes of 2 or 4 bits in the ONNX file itself: ternary ones, powers of two
            of 3 bits. It is smaller, no weight changes, and it is slower, which the measure step says.
    """

    kind: Literal["export"] = "export"
    pack: bool = False
    codes: bool = False
    format: Literal["onnx", "openvino", "executorch", "litert"] = "onnx"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Run the artifact and the dense float network in turn, in one fresh process, and keep every sample.

    Args:
        runtime: where they run; what is no ONNX file runs in the only one that takes it.
        threads: how many threads it may use; its process is held to as many cores where the system can.
        seconds: for how long, at least.
    """

    kind: Literal["measure"] = "measure"
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int = 1
    seconds: float = 3.0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads}: at least 1")
        if not 0 < self.seconds <= 600:
            raise ValueError(f"seconds = {self.seconds}: more than 0, at most 600")


Step = Train | Prune | Sparsify | NetTrim | Quantize | Export | Measure
STEPS: dict[str, type[Any]] = {
    "train": Train,
    "prune": Prune,
    "sparsify": Sparsify,
    "net_trim": NetTrim,
    "quantize": Quantize,
    "export": Export,
    "measure": Measure,
}
METHODS: dict[str, type[Any]] = {
    "distill": Distill,
    "distill_detector": DistillDetector,
    "data_free": DataFree,
    "hesso": Hesso,
    "dhspg": Dhspg,
    "keep_zeros": KeepZeros,
    "gradual": Gradual,
    "flipout": FlipOut,
    "hoyer": HoyerSquare,
    "ternary": Ternary,
    "pe_lasso": PeLasso,
    "share_weights": ShareWeights,
    "powers_of_two": PowersOfTwo,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to do to which network on which data.

    Args:
        model: a name of `edgewise list models`, ``timm:NAME`` or ``FILE.py:FUNCTION``.
        data: ``fashion-mnist``, ``cifar10``, ``cifar100``, ``pack:FOLDER`` or ``folder:PATH``.
        name: of the run's default folder; the file's name unless it is given.
        weights: a file of trained weights to start from; where the first step trains, its classifier may be of other
            classes, and begins anew.
        seed: of everything random.
        width: multiplies the channels of the reference networks.
        size: side in pixels that images are resized to; by default their own.
        held: share of the training split that is held out for every choice a method makes.
        images: how many training images are used, of every class alike, drawn with the seed; by default all.
        skip_bad: leave out, and count, boxes of no area or outside their image, which are refused otherwise.
        device: where training runs: "cpu", "cuda", or "auto" for the accelerator if there is one.
        budget: limits that the result is held against.
        notes: why the recipe is as it is, for people.
        step: what is done, in order.
    """

    model: str
    data: str
    step: tuple[Annotated[Step, Field(discriminator="kind")], ...]
    name: str = "run"
    weights: str | None = None
    seed: int = 0
    width: float = 1.0
    size: int | None = None
    held: float = 0.05
    images: int | None = None
    skip_bad: bool = False
    device: str = "auto"
    budget: Limits | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.step:
            raise ValueError("a recipe needs at least one [[step]]")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed = {self.seed}: 0 to 2147483647")
        if not self.width > 0:
            raise ValueError(f"width = {self.width}: more than 0")
        if self.size is not None and self.size < 8:
            raise ValueError(f"size = {self.size}: at least 8 pixels")
        if not 0 < self.held < 1:
            raise ValueError(f"held = {self.held}: a share between 0 and 1")
        if self.images is not None and self.images < 2:
            raise ValueError(f"images = {self.images}: at least 2")
        if self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name or self.name != self.name.strip():
            raise ValueError(f"name = {self.name!r}: it becomes a folder, so no slashes, dots alone or spaces around")

    @property
    def artifact(self) -> dict[str, Any]:
        """The precision of the artifact that is made in the end, and the threads it is measured with, if it is."""
        whole = any(isinstance(step, Quantize) and step.integers for step in self.step)
        threads = [step.threads for step in self.step if isinstance(step, Measure)]
        return {"precision": "int8" if whole else "float32", "threads": threads[-1] if threads else None}

    @property
    def format(self) -> str:
        """What is shipped in the end, as the last export step says it."""
        return next((step.format for step in reversed(self.step) if isinstance(step, Export)), "onnx")

    @property
    def measured(self) -> Measure:
        """Where the artifact will run: the first measure step, or what one is by default."""
        return next((step for step in self.step if isinstance(step, Measure)), Measure())

    @property
    def data_free(self) -> bool:
        """Whether the data set is read for nothing but the accuracy on its test split."""
        return any(isinstance(step, Train) and step.data_free for step in self.step)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The networks other than this run's that its trainings learn from, each once."""
        return tuple(dict.fromkeys(name for step in self.step if isinstance(step, Train) for name in step.teachers))

    def limits(self, step: Prune) -> dict[str, Limit]:
        """Return the limits of the budget that a prune step keeps within, by the columns of results.json."""
        return self.budget.by_column() if self.budget and step.budget else {}

    def for_artifact(self, step: Prune) -> Prune:
        """Fill in the precision and the threads that a prune step leaves open: those of the artifact."""
        left = {name: made for name, made in self.artifact.items() if getattr(step, name) is None and made is not None}
        return dataclasses.replace(step, **left)

    @property
    def dense_at(self) -> int:
        """How many steps come before the first that changes the network's structure or precision.

        A first training of fresh weights may do so too: then what it leaves stands for the dense network, since there
        is none before it.
        """
        fresh = self.weights is None
        changed = [
            not isinstance(step, Train) or (step.compresses and not (fresh and place == 0))
            for place, step in enumerate(self.step)
        ]
        return changed.index(True) if True in changed else len(changed)


def read(path: Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: the file; paths inside it are relative to the working folder.
        changes: settings that replace the file's, such as ``step.0.epochs=3``, one after the other;
            ``step.1.keep_macs=`` takes one out, and ``step.1=`` a whole step, whose number the next one then has.

    Raises:
        RecipeError: the file is missing or no TOML, a key is unknown, a value has the wrong type, unit or range, or
            the steps are in an impossible order. The message is one line with the key's path.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe") from error
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: no valid TOML: {error}") from error
    for change in changes:
        _set(table, change)
    table.setdefault("name", path.stem)
    return parse(table, str(path))


def shipped() -> Path:
    """Return the folder of the recipes that come with edgewise: in the installed package, or beside the sources."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def parse(table: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate a recipe that was read into a table; `source` begins the errors' messages."""
    _check_keys(table, Recipe, "", source)
    for path in _not_finite(table):
        raise RecipeError(f"{source}: {path} it must be a finite number")
    try:
        recipe = _adapter().validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_describe(error)}") from None
    _check_order(recipe, source)
    _check_artifact(recipe, source)
    _check_runtime(recipe, source)
    _check_formats(recipe, source)
    return recipe


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def to_toml(recipe: Recipe) -> str:
    """Write a recipe with every default spelt out; reading it back gives the same recipe."""
    import tomli_w

    return tomli_w.dumps(_without_none(dataclasses.asdict(recipe)))


def absolute(recipe: Recipe) -> Recipe:
    """Return the recipe with its paths (of the model, the data, the weights and the teachers) made absolute."""
    source, _, function = recipe.model.rpartition(":")
    data, _, place = recipe.data.partition(":")
    return dataclasses.replace(
        recipe,
        model=f"{_absolute(source)}:{function}" if source.endswith(".py") else recipe.model,
        data=f"{data}:{_absolute(place)}" if place else recipe.data,
        weights=_absolute(recipe.weights) if recipe.weights is not None else None,
        step=tuple(_with_teachers(step) if isinstance(step, Train) else step for step in recipe.step),
    )


def _with_teachers(step: Train) -> Train:
    """Return a training step with the paths of its teachers made absolute: of a folder, or of MODEL:FILE."""

    def absolute_of(name: str) -> str:
        model, colon, file = name.rpartition(":")
        return f"{model}:{_absolute(file)}" if colon and not Path(name).exists() else _absolute(name)

    methods = [
        dataclasses.replace(method, teachers=tuple(map(absolute_of, method.teachers)))
        if isinstance(method, Distill | DistillDetector | DataFree)
        else method
        for method in step.method
    ]
    return dataclasses.replace(step, method=tuple(methods))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


# -- what may go wrong ----------------------------------------------------------------------------------------------


def _set(table: dict[str, Any], change: str) -> None:
    """Apply one ``path=value`` to a table; the value is read as TOML, or else taken as text; none takes the key out."""
    path, equals, text = change.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f'--set "{change}": write it as step.0.epochs=3')
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    place: Any = table
    for position, key in enumerate(keys[:-1]):
        try:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        except (ValueError, IndexError):
            within, count = ".".join(keys[:position]), len(place)
            raise RecipeError(f'--set "{change}": {within} has the entries 0 to {count - 1}, not "{key}"') from None
        if not isinstance(place, dict | list):
            raise RecipeError(f'--set "{change}": {".".join(keys[: position + 1])} is a value, not a table')
    if isinstance(place, list):
        if value != "" or keys[-1] not in map(str, range(len(place))):
            raise RecipeError(f'--set "{change}": name a key of {".".join(keys[:-1])}.{keys[-1]}')
        del place[int(keys[-1])]
    elif value == "":
        place.pop(keys[-1], None)
    else:
        place[keys[-1]] = value


def _check_keys(table: Any, config: type[Any], path: str, source: str) -> None:
    """Refuse keys that a table's dataclass does not have; values are pydantic's to check."""
    if not isinstance(table, Mapping):
        return
    hints = get_type_hints(config)
    known = [field.name for field in dataclasses.fields(config)]
    for key, value in table.items():
        where = f"{path}{key}"
        if key not in known:
            raise RecipeError(f'{source}: unknown key "{where}"; {nearest(key, known, path)}')
        if key in ("step", "method") and isinstance(value, list):
            kinds = STEPS if key == "step" else METHODS
            for position, item in enumerate(value):
                _check_kind(item, kinds, f"{where}.{position}", source)
        elif (nested := _dataclass_in(hints[key])) is not None:
            _check_keys(value, nested, f"{where}.", source)


def _check_kind(item: Any, kinds: dict[str, type[Any]], path: str, source: str) -> None:
    if not isinstance(item, Mapping):
        raise RecipeError(f"{source}: {path} is {item!r}, it must be a table")
    kind = item.get("kind")
    if kind is None:
        raise RecipeError(f"{source}: {path} has no kind; known: {', '.join(sorted(kinds))}")
    if kind not in kinds:
        raise RecipeError(f'{source}: {path}.kind = "{kind}" is unknown; {nearest(str(kind), kinds)}')
    _check_keys(item, kinds[kind], f"{path}.", source)


def _not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each number that is infinite or NaN: TOML has them, no setting does."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path} = {value}:"
    elif isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_finite(item, f"{path}.{key}" if path else str(key))


def _dataclass_in(hint: Any) -> type[Any] | None:
    if dataclasses.is_dataclass(hint):
        return hint if isinstance(hint, type) else None
    return next((t for t in get_args(hint) if dataclasses.is_dataclass(t) and isinstance(t, type)), None)


def _describe(error: ValidationError) -> str:
    """Say in one line what pydantic found first."""
    first = error.errors()[0]
    tags = STEPS.keys() | METHODS.keys()  # of unions, which are not part of the path
    parts = [str(part) for part in first["loc"] if part not in tags]
    path = ".".join(parts)
    if first["type"] == "missing":
        return f'the key "{path}" is missing'
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{path}: {message}" if path else message
    message = message[:1].lower() + message[1:]
    return (
        f"{path} = {json.dumps(first['input'], default=str)}: {message.replace('Input', 'it').replace('input', 'it')}"
    )


def _check_artifact(recipe: Recipe, source: str) -> None:
    """Refuse a prune step that keeps within the budget of another artifact than the recipe makes and measures."""
    for position, step in enumerate(recipe.step):
        if isinstance(step, Prune) and step.budget:
            for name, made in recipe.artifact.items():
                if (given := getattr(step, name)) is not None and made is not None and given != made:
                    raise RecipeError(
                        f"{source}: step.{position}.{name} = {given!r}, but the artifact that [budget] limits is made "
                        f"and measured with {made!r}: leave it out"
                    )


def _check_runtime(recipe: Recipe, source: str) -> None:
    """Refuse a prune step that keeps within latencies of another runtime than the recipe measures in."""
    measured = {step.runtime for step in recipe.step if isinstance(step, Measure)} - {"onnxruntime"}
    formats = {step.format for step in recipe.step if isinstance(step, Export)} - {"onnx"}
    for position, step in enumerate(recipe.step):
        if isinstance(step, Prune) and (step.keep_latency is not None or "latency_s" in recipe.limits(step)):
            for elsewhere in sorted(measured | formats):
                raise RecipeError(
                    f"{source}: step.{position} (prune) keeps within a latency, which is measured in ONNX Runtime, but "
                    f'the artifact is for "{elsewhere}": prune for keep_macs, or measure in ONNX Runtime'
                )


def _check_formats(recipe: Recipe, source: str) -> None:
    """Refuse a scheme whose weights a format cannot hold as they are."""
    schemes = {step.scheme for step in recipe.step if isinstance(step, Quantize)} - {"auto"}
    for position, step in enumerate(recipe.step):
        held = ("qat", *schemes_for(step.format)) if isinstance(step, Export) else ()
        if isinstance(step, Export) and step.format in CODES_ONLY and (others := schemes.difference(held)):
            raise RecipeError(
                f'{source}: step.{position} (export): format = "{step.format}" has no kernels for scheme = '
                f'"{min(others)}"; take int8_static, qat or auto, or format = "onnx"'
            )


def values_of(step: Step) -> str:
    """Return the kind of a training's method that leaves weights of few values; nothing for any other step."""
    return step.values if isinstance(step, Train) else ""


def _check_order(recipe: Recipe, source: str) -> None:
    """Refuse steps that cannot follow one another."""
    quantized = artifact = False
    sparse: int | None = None  # the last step that made single weights zero
    valued: int | None = None  # the last training that left weights of few values
    for position, step in enumerate(recipe.step):
        where = f"{source}: step.{position} ({step.kind})"
        if sparse is not None and isinstance(step, Train) and not step.keeps_zeros:
            raise RecipeError(
                f"{where} would fill the zeros of step.{sparse} ({recipe.step[sparse].kind}): "
                'add [[step.method]] kind = "keep_zeros"'
            )
        made = isinstance(step, Sparsify | NetTrim) or (isinstance(step, Train) and step.makes_zeros)
        sparse = position if made else sparse
        if valued is not None and isinstance(step, Train | NetTrim):
            kind = values_of(recipe.step[valued])
            if values_of(step) != kind:
                raise RecipeError(
                    f"{where} would undo the values that step.{valued} ({kind}) leaves the weights: put it before that"
                    + (f', or add [[step.method]] kind = "{kind}"' if isinstance(step, Train) else "")
                )
        valued = position if values_of(step) else valued
        if isinstance(step, Prune) and step.budget and not (recipe.budget and recipe.budget.by_column()):
            raise RecipeError(f"{where} keeps within the budget, but [budget] limits nothing but the drop, if anything")
        if quantized and isinstance(step, Train | Prune | Sparsify | NetTrim | Quantize):
            raise RecipeError(f"{where} comes after quantize: train and prune before the network is quantised")
        if isinstance(step, Export) and step.pack and (quantized or step.format != "onnx"):
            other = "what quantize made" if quantized else f'format = "{step.format}"'
            raise RecipeError(
                f"{where}: pack = true stores the float network, and {other} is another file: leave one out"
            )
        if isinstance(step, Export) and step.codes and (quantized or step.format != "onnx"):
            other = "quantize has made codes already" if quantized else f'format = "{step.format}" is no ONNX file'
            raise RecipeError(f"{where}: codes = true is for the float ONNX file; {other}: leave it out")
        if isinstance(step, Export) and step.codes and recipe.measured.runtime != "onnxruntime":
            raise RecipeError(
                f"{where}: codes = true makes 2-bit codes, which only ONNX Runtime takes, and a measure step has "
                f'runtime = "{recipe.measured.runtime}": leave one out'
            )
        if isinstance(step, Measure) and not artifact:
            raise RecipeError(f"{where} has nothing to measure: put a quantize or export step before it")
        if isinstance(step, Train) and step.data_free and position:
            raise RecipeError(f"{where} reads no data, so that no step before it may: put it first")
        if isinstance(step, Train) and recipe.data_free and position and not step.data_free:
            raise RecipeError(f"{where} trains on data, and step.0 (train) was to do without: leave one of them out")
        if isinstance(step, Train) and position and any(getattr(each, "inherit", False) for each in step.method):
            raise RecipeError(f"{where} has inherit = true, and its network was made before: leave it out")
        if isinstance(step, Train) and step.distils and recipe.dense_at == 0 and recipe.weights is None:
            raise RecipeError(f"{where} distils from this run's dense network, which this recipe never trains")
        if isinstance(step, Train) and step.distils and position < recipe.dense_at:
            raise RecipeError(f"{where} distils from this run's dense network: put it after the prune step")
        quantized |= isinstance(step, Quantize)
        artifact = isinstance(step, Quantize | Export) or (
            artifact and not isinstance(step, Train | Prune | Sparsify | NetTrim)
        )
