"""Distillation losses on logits: the student learns the teacher's softened answers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    The factor T^2 keeps the gradient's size while T changes: each softmax contributes 1/T to it.

    Args:
        student: logits [N, classes].
        teacher: logits [N, classes].
        temperature: T, above 0.

    Returns:
        A float32 scalar (float64 for float64 logits), 0 where both agree up to a constant per row.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531,
    section 2. It writes the cross entropy, which differs by the teacher's entropy: a constant for the student.

    >>> round(kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=2.0).item(), 4)
    0.4438
    """
    log_student, log_teacher = (_log_softmax(logits, temperature) for logits in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Compute T^2 (alpha TCKD + beta NCKD), averaged over the batch: kd_loss in two parts with weights of their own.

    With p_t the probability of the right class at temperature T, TCKD is the divergence of (p_t, 1 - p_t), how sure
    of it the networks are, and NCKD that of the softmax over the other classes alone. Of one image kd_loss is T^2
    (TCKD + (1 - p_t) NCKD) with the teacher's p_t: a sure teacher's say about the other classes is lost there.

    Args:
        student: logits [N, classes], of at least 2 classes.
        teacher: logits [N, classes].
        labels: the right classes, int64 [N].
        temperature: T, above 0.
        alpha: weight of TCKD.
        beta: weight of NCKD; 8 is the paper's for most pairs of networks on CIFAR-100, with alpha = 1 and T = 4.

    Returns:
        A float32 scalar (float64 for float64 logits), 0 where both agree up to a constant per row.

    Reference: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, eq. (7).

    >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
    >>> round(dkd_loss(student, teacher, torch.tensor([0]), temperature=2.0, alpha=1.0, beta=8.0).item(), 4)
    0.4931
    """
    log_student, log_teacher = (_log_softmax(logits, temperature) for logits in (student, teacher))
    right = labels[:, None]
    place = torch.arange(student.shape[1] - 1, device=labels.device)
    others = place + (place >= right)  # int64 [N, classes - 1]: every class but the right one
    binary, rest = [], []
    for logs in (log_student, log_teacher):
        other = logs.gather(1, others)
        # log(1 - p_t) as a sum of the others' probabilities: 1 - p_t itself rounds to 0 where p_t is nearly 1.
        binary.append(torch.cat([logs.gather(1, right), other.logsumexp(1, keepdim=True)], dim=1))
        rest.append(F.log_softmax(other, dim=1))
    tckd = F.kl_div(binary[0], binary[1], reduction="batchmean", log_target=True)
    nckd = F.kl_div(rest[0], rest[1], reduction="batchmean", log_target=True)
    return (alpha * tckd + beta * nckd) * temperature**2


def mean_logits(answers: Sequence[Tensor], temperature: float) -> Tensor:
    """Return logits whose softmax at T is the mean of the softened probabilities of several teachers.

    Hinton et al. take an ensemble's mean of probabilities for soft targets. For `kd_loss` it has the very gradient of
    the mean of the teachers' losses, which differs by a constant; a mean of logits would let the teacher of the
    largest logits speak for all.

    Args:
        answers: logits [N, classes] of each teacher; those of a single one are returned as they are.
        temperature: T, above 0.

    Returns:
        [N, classes], float32 (float64 for float64 logits) unless there is one teacher.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 1.

    >>> two = [torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
    >>> mean_logits(two, temperature=1.0).softmax(dim=1).round(decimals=4).tolist()
    [[0.75, 0.25]]
    """
    if len(answers) == 1:
        return answers[0]
    logs = torch.stack([_log_softmax(logits, temperature) for logits in answers])
    return temperature * (logs.logsumexp(0) - math.log(len(answers)))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # In log-space: a probability that underflows to 0 would give 0 * -inf. In float32 also under autocast.
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=1)
