"""Distillation without data: the student imitates teachers on images that a generator makes against it."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewise.data import Split
from edgewise.distill.generator import Generator, first_side
from edgewise.distill.inherit import inherit
from edgewise.distill.memory import check_memory
from edgewise.errors import DataError, ModelError
from edgewise.graph.trace import evaluating
from edgewise.progress import Progress
from edgewise.tasks import Task, same_class
from edgewise.train.config import TrainConfig
from edgewise.train.forward import autocast, forward, home, image_layout, weight_layout
from edgewise.train.method import TrainingMethod

BALANCE = 5.0  # of the balance of classes in `leading_loss`
SAMPLED = 256  # images made at once when they are only looked at; changes memory alone


@dataclass(frozen=True, kw_only=True)
class DataFree:
    """How a student learns from teachers alone; the defaults are the published settings for 32 pixels.

    Args:
        teachers: run folders whose networks are the teachers; the student imitates the mean of their logits.
        weight: of the moment loss in the generator's loss. 0 needs no BatchNorm in the teachers; with one teacher
            it is then the data-free adversarial distillation of Fang et al.
        first: how often the moments of a teacher's first BatchNorm count; the others count once.
        student_steps: steps of the student, each on images of its own, between two steps of the generator.
        steps: steps of the generator that make an epoch.
        noise: numbers that an image is made of.
        generator_lr: Adam's learning rate for the generator where the student's is at its peak; it follows the
            student's schedule.
        lead: steps of the generator, at its whole rate, before the student's first: towards images that the teachers
            are sure of, of all classes alike, see `leading_loss`. Not published here; 0 is off.
        memory: batches of generated images that are kept with the teachers' answers, those of the generator's steps
            among them; the newest replaces the oldest. Not published: the student sees what earlier generators made
            again, and its steps on it need neither generator nor teachers. A checkpoint holds them. 0 is off.
        fresh: with a memory, how many of `student_steps` have new images; the others draw theirs from the memory.
        judged: how many times along the training, at most, the student is kept, to be judged on the test split when the
            training is over and the data may be opened: the curve of the report.
        inherit: whether the student begins as blocks of the first teacher, see `edgewise.distill.inherit`: for one of
            the same widths. Not published; it learns many times faster so.

    Raises:
        ValueError: a value out of range, by name.

    References:
        Hao et al., "Data-Free Ensemble Knowledge Distillation for Privacy-conscious Multimedia Model Compression",
        ACM MM 2021. Fang et al., "Data-Free Adversarial Distillation", 2019, arXiv 1912.11006. Of `lead`: Chen et al.,
        "Data-Free Learning of Student Networks", ICCV 2019, arXiv 1904.01186.
    """

    kind: Literal["data_free"] = "data_free"
    teachers: tuple[str, ...]
    weight: float = 0.1
    first: float = 5.0
    student_steps: int = 5
    steps: int = 50
    noise: int = 256
    generator_lr: float = 1e-3
    lead: int = 0
    memory: int = 0
    fresh: int = 1
    inherit: bool = False
    judged: int = 10

    def __post_init__(self) -> None:
        if not self.teachers:
            raise ValueError("teachers is empty; it must name at least one run folder")
        ranges: tuple[tuple[str, float, bool, str], ...] = (
            ("weight", self.weight, 0 <= self.weight < float("inf"), "at least 0"),
            ("first", self.first, 0 <= self.first < float("inf"), "at least 0"),
            ("student_steps", self.student_steps, self.student_steps >= 1, "at least 1"),
            ("steps", self.steps, self.steps >= 1, "at least 1"),
            ("noise", self.noise, self.noise >= 1, "at least 1"),
            ("generator_lr", self.generator_lr, 0 < self.generator_lr < float("inf"), "above 0"),
            ("lead", self.lead, self.lead >= 0, "at least 0"),
            ("memory", self.memory, self.memory >= 0, "at least 0"),
            ("judged", self.judged, self.judged >= 0, "at least 0"),
            ("fresh", self.fresh, 1 <= self.fresh <= self.student_steps, "from 1 to student_steps"),
        )
        for name, value, fits, range_ in ranges:
            if not fits:
                raise ValueError(f"{name} is {value}; it must be {range_}")


def ensemble_logits(teachers: Sequence[nn.Module], inputs: Tensor) -> Tensor:
    """Compute the mean of the teachers' logits.

    Args:
        teachers: at least one, in the mode they are to answer in.
        inputs: normalised images [N, C, H, W].

    Returns:
        float32 [N, classes], also under autocast.
    """
    return torch.stack([forward(teacher, inputs).float() for teacher in teachers]).mean(0)


def discrepancy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute mean |outputs - targets|, over images and classes; no temperature.

    Args:
        outputs: the student's logits [N, classes].
        targets: the ensemble's logits [N, classes].

    Returns:
        A float32 scalar.

    Reference: Fang et al., "Data-Free Adversarial Distillation", 2019, arXiv 1912.11006, section 3.2.

    >>> discrepancy(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])).item()
    2.0
    """
    return (outputs.float() - targets.float()).abs().mean()


def moment_loss(inputs: Sequence[Tensor], layers: Sequence[nn.BatchNorm2d], first: float = 5.0) -> Tensor:
    """Compute how far the moments of a teacher's activations are from those of the images it was trained on.

    sum_b c_b (||var(x_b) - running_var_b||_2 + ||mean(x_b) - running_mean_b||_2) over its BatchNorms b, with
    c_1 = first and 1 for the others.

    Args:
        inputs: what each BatchNorm is given, [N, C, H, W]; mean and biased variance are over N, H and W.
        layers: the BatchNorms in the order they run, with running statistics.
        first: c_1.

    Returns:
        A float32 scalar; 0 without layers.

    Reference: Hao et al., "Data-Free Ensemble Knowledge Distillation for Privacy-conscious Multimedia Model
    Compression", ACM MM 2021.
    """
    loss = torch.zeros((), device=inputs[0].device if inputs else None)
    for place, (x, layer) in enumerate(zip(inputs, layers, strict=True)):
        assert layer.running_var is not None
        assert layer.running_mean is not None
        x = x.float()
        # Two means: on the CPU twice as fast as torch.var_mean over these dimensions.
        mean = x.mean((0, 2, 3))
        var = (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
        distance = (var - layer.running_var).norm() + (mean - layer.running_mean).norm()
        loss = loss + (first if place == 0 else 1.0) * distance
    return loss


def generator_loss(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    inputs: Tensor,
    *,
    weight: float,
    first: float = 5.0,
) -> tuple[Tensor, Tensor]:
    """Compute -mean |S(x) - t(x)| + weight (1/n) sum over the n teachers of `moment_loss`.

    Its gradient goes through the student and the teachers to the images: these are run with autograd, in their mode.

    Args:
        student: S, gives logits [N, classes].
        teachers: their mean logits are t; in eval mode.
        inputs: the images x, normalised, [N, C, H, W].
        weight: of the moments; with 0 they are not computed.
        first: c_1 of the moment loss.

    Returns:
        A float32 scalar, and t(x), float32 [N, classes].
    """
    targets, moments = _ask(teachers, inputs, weight, first)
    return moments - discrepancy(forward(student, inputs), targets), targets.detach()


def leading_loss(teachers: Sequence[nn.Module], inputs: Tensor, *, weight: float, first: float = 5.0) -> Tensor:
    """Compute the loss of a generator that no student leads yet.

    The mean cross entropy of t(x) with its own largest class, + 5 `balance_loss`, + weight (1/n) sum of `moment_loss`:
    images that the teachers are sure of, of all classes alike, that look to them like what they were trained on.

    Args:
        teachers: their mean logits are t; in eval mode, run with autograd.
        inputs: the images x, normalised, [N, C, H, W].
        weight: of the moments; with 0 they are not computed.
        first: c_1 of the moment loss.

    Returns:
        A float32 scalar.

    Reference: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, arXiv 1904.01186: its one-hot loss and
    information entropy loss with their weights; moments stand for its activation loss.
    """
    targets, moments = _ask(teachers, inputs, weight, first)
    return functional.cross_entropy(targets, targets.argmax(1)) + BALANCE * balance_loss(targets) + moments


def balance_loss(logits: Tensor) -> Tensor:
    """Compute sum_k p_k log p_k, with p the mean over the batch of softmax(logits): least where all classes are alike.

    Args:
        logits: of the ensemble, [N, classes].

    Returns:
        A float32 scalar, from -log(classes) to 0.

    Reference: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (information entropy loss).

    >>> round(balance_loss(torch.tensor([[50.0, 0.0], [0.0, 50.0]])).item(), 4)
    -0.6931
    """
    # The logarithm of the mean without the mean, which may be 0 for a class.
    log_share = logits.float().log_softmax(1).logsumexp(0) - math.log(len(logits))
    return (log_share.exp() * log_share).sum()


def _ask(teachers: Sequence[nn.Module], inputs: Tensor, weight: float, first: float) -> tuple[Tensor, Tensor]:
    """Return the teachers' mean logits, float32 [N, classes], and the weighted mean of their moment losses."""
    logits, moments = [], []
    for teacher in teachers:
        with batchnorm_inputs(teacher) as (seen, layers):
            logits.append(forward(teacher, inputs).float())
        if weight:
            moments.append(moment_loss(seen, layers, first))
    matched = weight * torch.stack(moments).mean() if weight else torch.zeros((), device=inputs.device)
    return torch.stack(logits).mean(0), matched


@contextmanager
def batchnorm_inputs(model: nn.Module) -> Iterator[tuple[list[Tensor], list[nn.BatchNorm2d]]]:
    """Note what every BatchNorm with running statistics is given, as `moment_loss` takes it.

    Inputs and layers are in the order of the forward; both lists are empty before it.
    """
    inputs: list[Tensor] = []
    layers: list[nn.BatchNorm2d] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        inputs.append(given[0])
        layers.append(layer)

    hooks = [layer.register_forward_pre_hook(note) for layer in _batchnorms(model)]
    try:
        yield inputs, layers
    finally:
        for hook in hooks:
            hook.remove()


def _batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """List the BatchNorms that hold the moments of the images that the network was trained on."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]


@final
@dataclass(frozen=True)
class Imitation(Task):
    """The task of a student without data: to answer as the teachers do, on images that are made for each batch.

    Args:
        input_shape: (C, H, W) of an image.
        classes: how many logits.
        make: gives so many images with the teachers' logits.
    """

    input_shape: tuple[int, int, int]
    classes: int
    make: Callable[[int], tuple[Tensor, Tensor]] = field(repr=False, compare=False)

    @property
    def metric_name(self) -> str:
        """What the metric is called."""
        return "agreement with the teachers"

    def trained_with(
        self, *, label_smoothing: float, augment: tuple[str, ...], cutout_size: float, mixup_alpha: float
    ) -> Self:
        """Return this task; there are neither labels to smooth nor images to augment.

        Raises:
            ValueError: either is asked for.
        """
        if label_smoothing:
            raise ValueError(f"label_smoothing is {label_smoothing}; without data there are no labels, it must be 0")
        if augment:
            raise ValueError(f"augment is {tuple(augment)}; generated images are not augmented, it must be empty")
        return self

    def check(self, split: Split) -> None:
        """Refuse a split with anything in it.

        Raises:
            DataError: images or labels, or no places for them.
        """
        if len(split) == 0 or split.images.numel() or split.labels.numel():
            shape = f"images {list(split.images.shape)}, labels {list(split.labels.shape)}"
            raise DataError(f"data-free distillation reads no data, and was given {shape}; both must be [N, 0]")

    def batch(
        self, split: Split, index: Tensor, *, augment: bool, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make as many images as there are indices, out of torch's global random numbers.

        Returns:
            Inputs, float32 [B, C, H, W], and the ensemble's logits on them, float32 [B, classes].
        """
        return self.make(len(index))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the `discrepancy` of two logits [B, classes].

        Raises:
            ModelError: outputs of another shape.
        """
        if outputs.shape != targets.shape:
            raise ModelError(f"the network's output is {list(outputs.shape)}, the teachers' {list(targets.shape)}")
        return discrepancy(outputs, targets)

    def metric(self, answers: Tensor, targets: Tensor) -> float:
        """Compute the share of images that the student puts in the teachers' class."""
        return same_class(answers, targets)

    def check_network(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Refuse a network that does not return logits [N, classes]."""
        _check_output(model, input_shape, self.classes)


@final
class DataFreeDistillation(TrainingMethod):
    """Trains a student on images that a generator makes; no data is read.

    The student's step is the training loop's, on `task` and `split`: L_S = mean |S(x) - t(x)|, with t the mean of
    the teachers' logits and x = G(z) of new noise z. After every `student_steps` of them this method makes one of
    the generator's, which looks for images that the student still answers otherwise::

        L_G = -mean |S(x) - t(x)| + weight (1/n) sum over the n teachers of moment_loss

    The student stays in training mode there, so its BatchNorms see these images too. ::

        method = DataFreeDistillation(teachers, config, dataset.input_shape, classes)
        fit(student, method.task, method.split(train.batch), train, methods=[method])

    The split has no bytes: it only says how many images an epoch has. The generator's weights, Adam's averages and
    all noise follow from the training's seed, and a checkpoint holds them.

    Args:
        teachers: as many as the config names; frozen copies of them answer, in eval mode, under the training's
            autocast. The networks themselves are left as they are.
        config: the settings.
        input_shape: (C, H, W) of an image.
        classes: how many logits the teachers give.
        progress: is told ("lead", done, total) of the generator's steps before the student's first.

    Raises:
        ValueError: not as many teachers as the config names.
        ModelError: a teacher of other inputs or classes, or without BatchNorm where the moment loss has weight;
            images that are not square or of a side that the generator cannot make.
    """

    config: DataFree

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        config: DataFree,
        input_shape: tuple[int, int, int],
        classes: int,
        progress: Progress | None = None,
    ) -> None:
        if len(teachers) != len(config.teachers):
            raise ValueError(f"{len(teachers)} teachers are given, and teachers names {len(config.teachers)}")
        height, width = input_shape[1:]
        if height != width:
            raise ModelError(f"no images of {height} x {width} pixels can be generated: they must be square")
        first_side(height)
        for name, teacher in zip(config.teachers, teachers, strict=True):
            try:
                _check_output(teacher, input_shape, classes)
            except ModelError as error:
                raise ModelError(f"teacher {name}: {error}") from error
            if config.weight and not _batchnorms(teacher):
                raise ModelError(
                    f"teacher {name} has no BatchNorm whose moments the images could match; set weight = 0"
                )
        self.config, self._progress = config, progress
        self.task = Imitation(input_shape, classes, self._make)
        self._given = list(teachers)
        self._teachers = self._given
        self._generator: Generator | None = None

    def split(self, batch: int) -> Split:
        """Return the split of an epoch: no images, and a place for each that will be made.

        Args:
            batch: of the training, so that an epoch has `steps` steps of the generator.
        """
        nothing = torch.empty(batch * self.config.student_steps * self.config.steps, 0)
        return Split(nothing, nothing)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Make images with the generator as it is now, in eval mode, so that none depends on the others.

        Args:
            count: how many.
            seed: of their noise; torch's global random state is left as it is.

        Returns:
            Normalised images, float32 [count, C, H, W], on the CPU.

        Raises:
            ValueError: nothing has been trained yet.
        """
        if self._generator is None:
            raise ValueError("there is no generator yet; train with this method first")
        device = home(self._generator)
        z = torch.randn(count, self.config.noise, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), evaluating(self._generator):
            images = [self._generator(some.to(device)).cpu() for some in torch.split(z, SAMPLED)]
        return torch.cat(images).contiguous()

    def answers(self, inputs: Tensor) -> Tensor:
        """Return the mean of the teachers' logits on images [N, C, H, W], float32 [N, classes], in eval mode."""
        with torch.no_grad(), ExitStack() as modes:
            for teacher in self._given:
                modes.enter_context(evaluating(teacher))
            return torch.cat([ensemble_logits(self._given, some) for some in torch.split(inputs, SAMPLED)])

    def networks(self) -> Sequence[nn.Module]:
        """Return the teachers."""
        return self._given

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Copy the teachers to the student's device, freeze the copies, and make a new generator there.

        Raises:
            ModelError: a student of other inputs or classes, or one that cannot inherit.
            DataError: a memory larger than what is free.
            ValueError: an epoch that is not `split`'s.
        """
        expected = self.config.student_steps * self.config.steps
        if steps_per_epoch != expected:
            raise ValueError(
                f"an epoch has {steps_per_epoch} steps and needs {expected}; train on split({config.batch})"
            )
        self.task.check_network(model, self.task.input_shape)
        if self.config.inherit:
            inherit(model, self._given[0])
        device = home(model)
        self._teachers = [
            weight_layout(copy.deepcopy(teacher).to(device).eval().requires_grad_(False), torch.channels_last)
            for teacher in self._given
        ]
        channels, side, _ = self.task.input_shape
        generator = Generator(self.config.noise, channels, side).to(device)
        weight_layout(generator, torch.channels_last)
        self._generator = generator
        size = self.config.memory * config.batch
        needed = 4 * size * (channels * side * side + self.task.classes)
        check_memory("memory", needed, device, f"{self.config.memory} batches of {config.batch} images are too many")
        self._images = image_layout(torch.zeros(size, channels, side, side, device=device))
        self._logits = torch.zeros(size, self.task.classes, device=device)
        self._stored = torch.zeros((), dtype=torch.int64)
        self._led = False
        self._place = 0  # of the student's next step between two of the generator's; 0 at the start of each epoch
        self._optimizer = torch.optim.Adam(generator.parameters(), lr=self.config.generator_lr, foreach=True)
        self._batch, self._peak, self._precision = config.batch, config.lr, config.precision

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Make a step of the generator after every `student_steps` of the student."""
        if (step + 1) % self.config.student_steps:
            return
        config = self.config
        with torch.enable_grad(), autocast(home(model), self._precision):
            x = self._images_to_learn_from()
            loss, targets = generator_loss(model, self._teachers, x, weight=config.weight, first=config.first)
        self._step(loss, config.generator_lr * lr / self._peak)
        self._place = 0
        self._remember(x.detach(), targets)

    def _lead(self) -> None:
        """Make the generator's steps before the student's first."""
        config = self.config
        for step in range(config.lead):
            with torch.enable_grad(), autocast(home(self._teachers[0]), self._precision):
                x = self._images_to_learn_from()
                loss = leading_loss(self._teachers, x, weight=config.weight, first=config.first)
            self._step(loss, config.generator_lr)
            if self._progress:
                self._progress("lead", step + 1, config.lead)

    def _images_to_learn_from(self) -> Tensor:
        assert self._generator is not None
        return image_layout(self._generator(self._noise(self._batch)))

    def _step(self, loss: Tensor, lr: float) -> None:
        """Make a step of the generator."""
        assert self._generator is not None
        parameters: list[Tensor] = list(self._generator.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()

    def finish(self, model: nn.Module) -> nn.Module:
        """Let go of the teachers' copies; the generator stays, for `sample`."""
        self._teachers = self._given
        return model

    def state(self) -> dict[str, Tensor]:
        """Return the generator, Adam's averages and the memory."""
        assert self._generator is not None
        state = {f"generator.{name}": tensor for name, tensor in self._generator.state_dict().items()}
        if self.config.memory:
            state |= {"memory.images": self._images, "memory.logits": self._logits, "memory.stored": self._stored}
        for place, parameter in enumerate(self._generator.parameters()):
            for name, tensor in self._optimizer.state[parameter].items():
                state[f"adam.{place}.{name}"] = tensor
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        assert self._generator is not None
        self._led = True
        if self.config.memory:
            self._images.copy_(state["memory.images"])
            self._logits.copy_(state["memory.logits"])
            self._stored.copy_(state["memory.stored"])
        for name, tensor in self._generator.state_dict().items():
            tensor.copy_(state[f"generator.{name}"])
        for place, parameter in enumerate(self._generator.parameters()):
            for name in ("step", "exp_avg", "exp_avg_sq"):
                tensor = state[f"adam.{place}.{name}"]
                # In the parameter's own memory layout, as Adam made it; the step counts on the CPU.
                self._optimizer.state[parameter][name] = (
                    tensor if name == "step" else torch.empty_like(parameter).copy_(tensor)
                )

    def _noise(self, count: int) -> Tensor:
        assert self._generator is not None
        return torch.randn(count, self.config.noise, device=home(self._generator))

    def _make(self, count: int) -> tuple[Tensor, Tensor]:
        """Make a batch for the student: images [count, C, H, W] and the ensemble's logits [count, classes]."""
        generator = self._generator
        assert generator is not None
        if not self._led:
            self._led = True
            self._lead()
        place, self._place = self._place, self._place + 1
        if self.config.memory and place >= self.config.fresh:
            filled = min(int(self._stored) * self._batch, len(self._images))
            chosen = torch.randint(filled, (count,), device=self._images.device)
            return self._images[chosen], self._logits[chosen]
        with torch.no_grad(), autocast(home(generator), self._precision):
            x = image_layout(generator(self._noise(count)))
            targets = ensemble_logits(self._teachers, x)
        self._remember(x, targets)
        return x.float(), targets

    def _remember(self, images: Tensor, logits: Tensor) -> None:
        """Keep a batch with the ensemble's answers, in the place of the oldest."""
        if not self.config.memory:
            return
        place = int(self._stored) % self.config.memory * self._batch
        self._images[place : place + self._batch] = images
        self._logits[place : place + self._batch] = logits
        self._stored += 1


def _check_output(model: nn.Module, input_shape: tuple[int, int, int], classes: int) -> None:
    from edgewise.models import check_output  # it imports what trains

    check_output(model, input_shape, classes)
