"""Knowledge distillation: a student learns from teachers' answers and features while it trains on its task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.distill.features import attention_loss, pooled, relational_loss, similarity_loss
from edgewise.distill.inherit import inherit
from edgewise.distill.logits import dkd_loss, kd_loss, mean_logits
from edgewise.distill.memory import check_memory
from edgewise.distill.taps import Pairing, Teachers, check_taps, inputs_of
from edgewise.errors import ModelError
from edgewise.tasks import Task
from edgewise.train.config import TrainConfig
from edgewise.train.forward import autocast, home
from edgewise.train.method import TrainingMethod


@dataclass(frozen=True, kw_only=True)
class Distill:
    """What the student learns from the teachers, and how much.

    The loss is (1 - alpha) task + alpha logits + hint L_hint + attention L_attention + similarity L_similarity +
    relational L_relational, the last four summed over the taps. For other weights at other taps list the method twice,
    the second time with alpha = 0.

    Args:
        temperature: what both networks' logits are divided by; higher shows more of the small probabilities.
        alpha: share of the loss on logits; the task's loss has 1 - alpha.
        loss: on logits: "kd", `kd_loss`; "dkd", `dkd_loss`, which needs one right class per image, so no ``mixup``.
        beta: of "dkd": the weight of what the teacher says of the wrong classes, beside 1 for how sure it is.
        hint: weight of `hint_loss`, behind an adapter that is trained with the student and gone in the end.
        attention: weight of `attention_loss`.
        similarity: weight of `similarity_loss`; the paper has 3000.
        relational: weight of `relational_loss`; the paper has 25 for classifiers.
        taps: the student's modules whose outputs the last four compare with the teachers'.
        teacher_taps: their partners in the teachers, one for each; empty means the same names.
        teachers: run folders or files of weights; empty means this run's dense network.
        cache: ask the teachers about each image only once and keep their answers, and features, in memory. For
            trainings that show every image as it is: ``augment = []``.
        inherit: whether the student begins as blocks of the first teacher, see `edgewise.distill.inherit`.

    Raises:
        ValueError: a value out of range, by name; a weight without taps, or the reverse.
    """

    kind: Literal["distill"] = "distill"
    temperature: float = 4.0
    alpha: float = 0.7
    loss: Literal["kd", "dkd"] = "kd"
    beta: float = 8.0
    hint: float = 0.0
    attention: float = 0.0
    similarity: float = 0.0
    relational: float = 0.0
    taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    cache: bool = False
    inherit: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; it must be in [0, 1]")
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta is {self.beta}; it must be at least 0")
        check_taps(self.taps, self.teacher_taps, self.feature_weights)

    @property
    def feature_weights(self) -> dict[str, float]:
        """The weights of the losses on features, by name."""
        names = ("hint", "attention", "similarity", "relational")
        return {name: getattr(self, name) for name in names}


@final
class Distillation(TrainingMethod):
    """Trains the student on the loss that `Distill` describes, where the task's is that of the methods before this one.

    So a penalty that should keep its full weight stands after the distillation in the recipe. Of several teachers the
    mean counts: of their softened probabilities (`mean_logits`), and of the losses on each one's features.

    Args:
        teachers: one or more that give as many classes as the student. Frozen copies of them answer, in eval mode,
            under the training's autocast; the networks themselves are left as they are.
        config: what is learnt from them.
        task: makes inputs of the split. With taps or the cache both are needed.
        split: the images that the training is given; with them, what cannot be compared is found before it begins.

    Raises:
        ValueError: no teacher; taps or a cache without task and split.
    """

    config: Distill

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        config: Distill,
        task: Task | None = None,
        split: Split | None = None,
    ) -> None:
        if not teachers:
            raise ValueError("teachers is empty; a distillation needs at least one")
        if (config.taps or config.cache) and (task is None or split is None):
            raise ValueError("taps and the cache need the task and the split that the training is given")
        self.config = config
        self._given = tuple(teachers)
        self._images = (task, split) if task is not None and split is not None else None
        self._pairing: Pairing | None = None
        self._index = torch.empty(0, dtype=torch.int64)
        self._kept: list[list[Tensor]] = []  # what each teacher tells, of the whole split
        self._kept_is_seen = False

    def networks(self) -> Sequence[nn.Module]:
        """Return the teachers."""
        return self._given

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Let the student inherit, copy the teachers to its device, tap both, add the adapters, and fill the cache.

        Raises:
            ValueError: a training that augments its images beside a cache, or blends them beside "dkd".
            DataError: a cache that does not fit into memory.
            ModelError: no module of a name, features or outputs that cannot be compared; a student that cannot inherit.
        """
        mine = self.config
        if mine.cache and config.augment:
            raise ValueError(
                f"cache keeps one answer per image, and augment = {list(config.augment)} changes the image each time; "
                "set augment = [] or cache = false"
            )
        if mine.loss == "dkd" and "mixup" in config.augment:
            raise ValueError(
                'loss = "dkd" needs one right class per image, and mixup blends two; leave one of them out'
            )
        if mine.inherit:
            inherit(model, self._given[0])
        self._pairing = Pairing(model, self._given, mine.taps, mine.teacher_taps, mine.feature_weights, self._images)
        self._kept = self._ask(self._pairing.teachers, home(model), config) if mine.cache else []
        self._kept_is_seen = False

    def _ask(self, teachers: Teachers, device: torch.device, config: TrainConfig) -> list[list[Tensor]]:
        """Ask the teachers about every image, in the split's order: a resumed training finds the same bytes.

        Returns:
            Of each teacher its logits and features, [images, inputs of each, ...].
        """
        assert self._images is not None
        kept: list[list[Tensor]] = []
        images = len(self._images[1])
        for index in torch.split(torch.arange(images), config.batch):
            inputs = inputs_of(*self._images, index, device)
            with autocast(device, config.precision):
                told = [
                    [each.reshape(len(index), -1, *each.shape[1:]) for each in one] for one in teachers.tell(inputs)
                ]
            if not kept:
                needed = images * sum(each[0].numel() * each.element_size() for one in told for each in one)
                check_memory("cache", needed, device, "set cache = false, or tap smaller features")
                kept = [[each.new_empty(images, *each.shape[1:]) for each in one] for one in told]
            for wholes, parts in zip(kept, told, strict=True):
                for whole, part in zip(wholes, parts, strict=True):
                    whole[index.to(device)] = part
        return kept

    def before_step(self, model: nn.Module, index: Tensor) -> None:
        """Note which images come, and forget features of any forward that was not a step's."""
        self._index = index
        if self._pairing:
            self._pairing.taps.forget()

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Mix the loss so far with those of the distillation, on the same, augmented inputs.

        Raises:
            ModelError: teacher and student give different shapes, such as numbers of classes.
            ValueError: a cache of other images than the training sees.
        """
        assert self._pairing is not None  # start was called
        told = self._recall(inputs) if self.config.cache else self._pairing.teachers.tell(inputs)
        self._pairing.teachers.check(told, outputs)
        config = self.config
        if outputs.dim() != 2:
            raise ModelError(f"distill compares logits [N, classes], and the student's output is {list(outputs.shape)}")
        answers = mean_logits([each[0] for each in told], config.temperature)
        if config.loss == "kd":
            on_logits = kd_loss(outputs, answers, config.temperature)
        else:
            on_logits = dkd_loss(outputs, answers, targets, config.temperature, beta=config.beta)
        loss = (1 - config.alpha) * loss + config.alpha * on_logits
        if config.taps:
            features = self._pairing.taps.take()
            for teacher, (_, *theirs) in enumerate(told):
                for part in self._parts(self._pairing, model, features, theirs, teacher):
                    loss = loss + part / len(told)
        return loss

    def _parts(
        self, pairing: Pairing, model: nn.Module, features: Sequence[Tensor], told: Sequence[Tensor], teacher: int
    ) -> Iterator[Tensor]:
        """Yield the weighted losses on the features of one teacher."""
        config = self.config
        for place, (mine, theirs) in enumerate(zip(features, told, strict=True)):
            if config.similarity:
                yield config.similarity * similarity_loss(mine, theirs)
            if config.relational:
                yield config.relational * relational_loss(mine, theirs)
            ours, wanted = pooled(mine, theirs)
            if config.attention:
                yield config.attention * attention_loss(ours, wanted)
            if config.hint:
                yield config.hint * pairing.hint(model, teacher, place, ours, wanted)

    def _recall(self, inputs: Tensor) -> list[list[Tensor]]:
        """Return what the teachers told of the step's images; of the first step make sure that they are the same."""
        if not self._kept_is_seen:
            assert self._images is not None
            known = int(self._index.max()) < len(self._images[1])
            if not known or not torch.equal(inputs_of(*self._images, self._index, inputs.device), inputs):
                raise ValueError(
                    "the cache was filled with other images than the training sees; give it the same split"
                )
            self._kept_is_seen = True
        return [[each[self._index].flatten(0, 1) for each in one] for one in self._kept]

    def finish(self, model: nn.Module) -> nn.Module:
        """Take hooks and adapters away from the student, and let go of copies and cache."""
        if self._pairing:
            self._pairing.remove(model)
        self._pairing, self._kept = None, []
        return model
