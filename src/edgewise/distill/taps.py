"""Inside the networks of a distillation: named features are tapped, teachers stand frozen, adapters bridge widths."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.errors import ModelError, nearest
from edgewise.train.forward import forward, weight_layout


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


def check_features(
    taps: Taps, features: Sequence[Tensor], teachers: Teachers, told: Sequence[Sequence[Tensor]], compared_by: str
) -> None:
    """Refuse features that a loss cannot compare.

    Args:
        taps: of the student, with their names.
        features: of the student.
        teachers: with their names.
        told: the features of each teacher.
        compared_by: "hint" takes [N, C, H, W] or [N, D] on both sides, "attention" the former alone, others all.

    Raises:
        ModelError: which feature, and the shapes.
    """
    fits = {"hint": ((4, 4), (2, 2)), "attention": ((4, 4),)}.get(compared_by)
    for whose, theirs in zip(teachers.names, told, strict=True):
        for name, mine, wanted in zip(taps.names, features, theirs, strict=True):
            if len(mine) != len(wanted) or (fits and (mine.dim(), wanted.dim()) not in fits):
                raise ModelError(
                    f'{compared_by} cannot compare "{name}" of the student, {list(mine.shape)}, with its partner in '
                    f"{whose}, {list(wanted.shape)}; tap another module"
                )
