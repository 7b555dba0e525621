"""Inside the networks of a distillation: named features are tapped, teachers stand frozen, adapters bridge widths."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import Split
from edgewise.distill.features import hint_loss
from edgewise.errors import ModelError, nearest
from edgewise.graph.trace import evaluating
from edgewise.tasks import Task
from edgewise.train.forward import forward, home, image_layout, weight_layout


def check_taps(taps: Sequence[str], teacher_taps: Sequence[str], weights: Mapping[str, float]) -> None:
    """Refuse weights of feature losses, and names of what they compare, that do not go together.

    Raises:
        ValueError: a weight out of range, a weight without taps or the reverse, unequal numbers of taps.
    """
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} is {weight}; it must be at least 0")
    used = [name for name, weight in weights.items() if weight > 0]
    if used and not taps:
        raise ValueError(f'{used[0]} compares features, and taps names none; set taps = ["layer2"], for one')
    if taps and not used:
        raise ValueError(f"taps is {list(taps)}, and nothing compares them; set one of {', '.join(weights)} above 0")
    if teacher_taps and len(teacher_taps) != len(taps):
        raise ValueError(f"teacher_taps names {len(teacher_taps)} features, taps {len(taps)}; each needs its partner")


@final
class Taps:
    """Keeps what named modules of a network return, until it is taken.

    A module whose output is changed in place afterwards, as by a ReLU, shows what became of it.

    Args:
        model: gets a forward hook on each of the modules.
        names: of modules, as `nn.Module.named_modules` has them.
        whose: what to call the network in errors.

    Raises:
        ModelError: no module of a name.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], whose: str) -> None:
        self.names, self.whose = tuple(names), whose
        self._seen: dict[str, list[Any]] = {}
        modules = {name: module for name, module in model.named_modules() if name}
        for name in names:
            if name not in modules:
                raise ModelError(f'{whose} has no module "{name}" to tap; {nearest(name, modules)}')
        self._hooks = [modules[name].register_forward_hook(self._keep(name)) for name in dict.fromkeys(names)]

    def _keep(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._seen.setdefault(name, []).append(output)

        return keep

    def take(self) -> list[Tensor]:
        """Return the features of the last forward in the order of the names, and forget them.

        Raises:
            ModelError: a module did not run, ran more than once, or returned something else than a tensor.
        """
        seen = dict(self._seen)
        self.forget()
        for name in self.names:
            outputs = seen.get(name, [])
            if len(outputs) != 1:
                ran = f"ran {len(outputs)} times" if outputs else "did not run"
                raise ModelError(f'module "{name}" of {self.whose} {ran} in one forward; tap one that runs once')
            if not isinstance(outputs[0], Tensor):
                made = type(outputs[0]).__name__
                raise ModelError(f'module "{name}" of {self.whose} returns an object of type {made}, no tensor to tap')
        return [seen[name][0] for name in self.names]

    def forget(self) -> None:
        """Let go of what was kept."""
        self._seen.clear()

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self.forget()


@final
class Teachers:
    """Frozen copies of networks that answer in eval mode and without gradients.

    Args:
        given: stay as they are.
        taps: the features to tell of, in every teacher.
        device: where the copies go.

    Raises:
        ModelError: no module of a name.
    """

    def __init__(self, given: Sequence[nn.Module], taps: Sequence[str], device: torch.device) -> None:
        self._models = []
        for model in given:
            copied = copy.deepcopy(model).to(device).eval().requires_grad_(False)
            self._models.append(weight_layout(copied, torch.channels_last))
        self.names = ["the teacher"] if len(given) == 1 else [f"teacher {place + 1}" for place in range(len(given))]
        self._taps = [Taps(model, taps, name) for model, name in zip(self._models, self.names, strict=True)]

    def tell(self, inputs: Tensor) -> list[list[Tensor]]:
        """Return for each teacher its outputs and the features that were asked for, in one list.

        Raises:
            ModelError: a forward that raises.
        """
        with torch.no_grad():
            return [
                [forward(model, inputs), *taps.take()] for model, taps in zip(self._models, self._taps, strict=True)
            ]

    def check(self, told: Sequence[Sequence[Tensor]], outputs: Tensor) -> None:
        """Refuse teachers whose outputs are not shaped as the student's.

        Raises:
            ModelError: which one, and both shapes.
        """
        for name, (answers, *_) in zip(self.names, told, strict=True):
            if answers.shape != outputs.shape:
                raise ModelError(f"{name}'s output is {list(answers.shape)}, the student's {list(outputs.shape)}")


@final
class Adapters:
    """One learned map from the student's features to each teacher's: a 1x1 convolution, or a linear one of [N, D].

    Their weights are parameters of the network itself, not modules in it: what runs all its modules (`nn.Sequential`)
    or compresses its convolutions and linear layers does not meet them.

    Args:
        model: the student, which gets the parameters; they begin uniform in +- 1 / sqrt(inputs), from torch's global
            generator, as torch begins its layers.
        features: of the student, [N, C, H, W] or [N, C]; their sizes of space do not matter.
        told: of each teacher, likewise, in the same order.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, section 2.2 (the
    regressor, there a convolution as large as the difference of the sizes; here the larger map is averaged).
    """

    def __init__(self, model: nn.Module, features: Sequence[Tensor], told: Sequence[Sequence[Tensor]]) -> None:
        self._names: list[list[tuple[str, str]]] = []
        number = 0
        for theirs in told:
            self._names.append([])
            for mine, wanted in zip(features, theirs, strict=True):
                while hasattr(model, f"hint_{number}_weight"):  # another distillation of the same training
                    number += 1
                names = f"hint_{number}_weight", f"hint_{number}_bias"
                shape = (wanted.shape[1], mine.shape[1], *[1] * (mine.dim() - 2))
                bound = mine.shape[1] ** -0.5
                weight = torch.empty(shape, device=mine.device).uniform_(-bound, bound)
                model.register_parameter(names[0], nn.Parameter(weight))
                model.register_parameter(names[1], nn.Parameter(torch.zeros(shape[0], device=mine.device)))
                self._names[-1].append(names)

    def adapt(self, model: nn.Module, teacher: int, place: int, feature: Tensor) -> Tensor:
        """Map a feature [N, C, ...] of the student to [N, C', ...], a teacher's width."""
        weight, bias = (model.get_parameter(name) for name in self._names[teacher][place])
        return F.conv2d(feature, weight, bias) if feature.dim() == 4 else F.linear(feature, weight, bias)

    def remove(self, model: nn.Module) -> None:
        """Take the parameters away."""
        for names in self._names:
            for weight, bias in names:
                delattr(model, weight)
                delattr(model, bias)


@final
class Pairing:
    """A student's taps, its frozen teachers, and the adapters where hints are compared.

    Args:
        model: the student, a copy that is trained; gets hooks and adapters, which `remove` takes away.
        teachers: stay as they are.
        taps: the student's features.
        teacher_taps: their partners in every teacher; empty means the same names.
        weights: of the losses on features, by name; with a weight on "hint" there are adapters.
        images: the task that makes inputs, and the split: two of its images show whether all goes together. Needed
            for taps.

    Raises:
        ModelError: no module of a name, one that does not run once, features or outputs that cannot be compared.
    """

    def __init__(
        self,
        model: nn.Module,
        teachers: Sequence[nn.Module],
        taps: Sequence[str],
        teacher_taps: Sequence[str],
        weights: Mapping[str, float],
        images: tuple[Task, Split] | None,
    ) -> None:
        self.taps = Taps(model, taps, "the student")
        self.teachers = Teachers(teachers, teacher_taps or taps, home(model))
        self._adapters: Adapters | None = None
        if images is None:
            return
        inputs = inputs_of(*images, torch.arange(min(2, len(images[1]))), home(model))
        with torch.no_grad(), evaluating(model):
            outputs, features = forward(model, inputs), self.taps.take()
        told = self.teachers.tell(inputs)
        self.teachers.check(told, outputs)
        theirs = [features for _, *features in told]
        for name, weight in weights.items():
            if weight > 0:
                self._check(features, theirs, name)
        if weights.get("hint", 0) > 0:
            self._adapters = Adapters(model, features, theirs)

    def _check(self, features: Sequence[Tensor], told: Sequence[Sequence[Tensor]], loss: str) -> None:
        """Refuse features that a loss cannot compare: which ones, and their shapes."""
        fits = {"hint": ((4, 4), (2, 2)), "attention": ((4, 4),)}.get(loss)  # dimensions of both
        for whose, theirs in zip(self.teachers.names, told, strict=True):
            for name, mine, wanted in zip(self.taps.names, features, theirs, strict=True):
                if len(mine) != len(wanted) or (fits and (mine.dim(), wanted.dim()) not in fits):
                    raise ModelError(
                        f'{loss} cannot compare "{name}" of the student, {list(mine.shape)}, with its partner in '
                        f"{whose}, {list(wanted.shape)}; tap another module"
                    )

    def hint(self, model: nn.Module, teacher: int, place: int, mine: Tensor, theirs: Tensor) -> Tensor:
        """Compute `hint_loss` of a feature of the student, through its adapter, and a teacher's of the same size."""
        assert self._adapters is not None  # "hint" has a weight
        return hint_loss(self._adapters.adapt(model, teacher, place, mine), theirs)

    def remove(self, model: nn.Module) -> None:
        """Take away from the student what it was given."""
        self.taps.remove()
        if self._adapters:
            self._adapters.remove(model)


def inputs_of(task: Task, split: Split, index: Tensor, device: torch.device) -> Tensor:
    """Make inputs of images as they are, as the training loop lays them out.

    Args:
        task: makes them.
        split: on any device.
        index: int64 [B].
        device: where they go.
    """
    part = split.part(index).to(device)
    return image_layout(task.batch(part, torch.arange(len(part), device=device), augment=False)[0])
