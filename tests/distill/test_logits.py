import copy
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.distill import Distill, Distillation, kd_loss
from edgewise.errors import ModelError
from edgewise.train import TrainConfig, evaluate, fit
from train.tiny import TASK, same, tensors, tiny_net, tiny_split

SPLIT = tiny_split(100)
CONFIG = TrainConfig(epochs=1, batch=32, lr=0.05)


def logits(seed: int, scale: float = 3.0, rows: int = 6, classes: int = 5) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Out of plain softmaxes, as the paper writes it."""
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    return temperature**2 * F.kl_div(q.log(), p, reduction="batchmean")


def test_kd_by_hand() -> None:
    # Teacher softmax(2/2, 0) = (e, 1) / (e + 1), student (1/2, 1/2): KL = sum p log 2p, over one row.
    p = [math.e / (math.e + 1), 1 / (math.e + 1)]
    expected = 4 * sum(share * math.log(2 * share) for share in p)
    assert kd_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), 2.0).item() == pytest.approx(expected, rel=1e-6)


def test_kd_is_not_symmetric_and_the_teacher_is_the_reference() -> None:
    student, teacher = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    # By hand at T = 1, with p = softmax(1, 0) and q = softmax(0, 4).
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(4))
    forward = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    backward = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert kd_loss(student, teacher, 1.0).item() == pytest.approx(forward, rel=1e-5)
    assert kd_loss(teacher, student, 1.0).item() == pytest.approx(backward, rel=1e-5)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 50))
def test_kd_equals_kl_div_of_plain_softmaxes(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 5000)
    expected = plain_kd(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-9)
    single = kd_loss(student.float(), teacher.float(), temperature)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected.item(), rel=1e-3)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 50), shift=st.floats(-20, 20))
def test_kd_is_zero_with_zero_gradient_where_both_agree_up_to_a_constant(
    seed: int, temperature: float, shift: float
) -> None:
    student = logits(seed).requires_grad_()
    loss = kd_loss(student, student.detach() + shift, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-9)
    assert student.grad.abs().max() < 1e-9
    assert kd_loss(student, logits(seed + 5000), temperature).item() > 0


def test_its_gradient_keeps_its_size_at_high_temperatures() -> None:
    # Hinton et al., eq. (4): for high T it tends to (z - v) / classes, here per row of zero mean, divided by the rows.
    student, teacher = (x - x.mean(dim=1, keepdim=True) for x in (logits(0), logits(1)))
    limit = (student - teacher) / student.shape[1] / student.shape[0]
    for temperature, tolerance in ((100.0, 0.05), (1000.0, 0.005)):
        z = student.clone().requires_grad_()
        kd_loss(z, teacher, temperature).backward()
        assert torch.allclose(z.grad, limit, rtol=0, atol=tolerance * limit.abs().max().item())


def test_probabilities_that_underflow_stay_finite() -> None:
    student = torch.tensor([[0.0, -500.0, 300.0]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[400.0, 0.0, -400.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(300.0)
    assert student.grad.isfinite().all()


def test_bfloat16_logits_are_compared_in_float32() -> None:
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    assert kd_loss(student, teacher, 4.0) == kd_loss(student.float(), teacher.float(), 4.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"alpha": 1.5}, r"alpha is 1.5; it must be in \[0, 1\]"),
        ({"alpha": -0.1}, r"alpha is -0.1; it must be in \[0, 1\]"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distill(**given)


def test_the_loss_mixes_both_by_alpha() -> None:
    net, teacher, inputs = tiny_net().eval(), tiny_net(seed=5).eval(), torch.randn(4, 3, 8, 8)
    method = Distillation([teacher], Distill(temperature=2.0, alpha=0.25))
    method.start(net, CONFIG, 1)
    outputs, targets = net(inputs), torch.zeros(4, dtype=torch.int64)
    expected = 0.75 * 8.0 + 0.25 * plain_kd(outputs, teacher(inputs), 2.0)
    mixed = method.loss(net, inputs, outputs, targets, torch.tensor(8.0))
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_weight_it_changes_nothing() -> None:
    with_teacher = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[Distillation([tiny_net(seed=5)], Distill(alpha=0))])
    assert same(with_teacher, fit(tiny_net(), TASK, SPLIT, CONFIG))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_left_as_it_is_to_the_bit(training: bool, precision: str) -> None:
    teacher = tiny_net(seed=5, dropout=0.5).train(training)
    teacher[4].train(not training)
    modes, before = [m.training for m in teacher.modules()], tensors(teacher)
    layouts = [parameter.stride() for parameter in teacher.parameters()]
    config = TrainConfig(epochs=1, batch=32, precision=precision)
    fit(tiny_net(), TASK, SPLIT, config, methods=[Distillation([teacher], Distill())])
    assert same(teacher, before)  # BatchNorm's statistics and counters among them
    assert [module.training for module in teacher.modules()] == modes
    assert [parameter.stride() for parameter in teacher.parameters()] == layouts
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_answers_in_eval_mode_without_gradient_under_the_same_precision() -> None:
    class Spy(nn.Module):
        """Notes how it is run."""

        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net(seed=5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            seen.append((self.training, torch.is_grad_enabled(), out.dtype))
            return out

    seen: list[tuple[bool, bool, torch.dtype]] = []
    config = TrainConfig(epochs=1, batch=32, precision="bfloat16")
    fit(tiny_net(), TASK, SPLIT, config, methods=[Distillation([Spy()], Distill())])
    assert seen == [(False, False, torch.bfloat16)] * 3


def test_a_teacher_of_other_classes_or_inputs_is_refused() -> None:
    for teacher, message in (
        (tiny_net(classes=7), r"the teacher's output is \[32, 7\], the student's \[32, 4\]"),
        (tiny_net(channels=1), r"inputs \[32, 3, 8, 8\]: RuntimeError"),
    ):
        with pytest.raises(ModelError, match=message):
            fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[Distillation([teacher], Distill())])


def test_a_student_learns_from_its_teacher_alone() -> None:
    data, unseen = tiny_split(400), tiny_split(200, seed=9)
    config = TrainConfig(epochs=6, batch=32, lr=0.05, augment=())
    teacher = fit(tiny_net(seed=5), TASK, data, config)
    method = Distillation([teacher], Distill(alpha=1.0))
    student = fit(tiny_net(), TASK, data, config, methods=[method])
    assert evaluate(student, TASK, unseen) > 0.95
    images = TASK.batch(unseen, torch.arange(200), augment=False)[0]
    with torch.no_grad():
        answers = teacher.eval()(images)
        before, after = (kd_loss(net.eval()(images), answers, 4.0) for net in (tiny_net(), student))
    assert after < 0.2 * before


def test_the_copy_of_the_teacher_is_let_go() -> None:
    copies: list[weakref.ref[nn.Module]] = []

    class Watched(nn.Module):
        """Tells of the copies that are made of it."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def __deepcopy__(self, memo: Any) -> nn.Module:
            copied = Watched(copy.deepcopy(self.net, memo))
            copies.append(weakref.ref(copied))
            return copied

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    method = Distillation([Watched(tiny_net(seed=5))], Distill())
    fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[method])
    gc.collect()
    assert len(copies) == 1
    assert copies[0]() is None
