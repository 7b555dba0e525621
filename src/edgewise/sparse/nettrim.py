"""Net-Trim: the sparsest weights with which a layer still computes what it did, from its inputs alone; no training.

A layer is a product of matrices: rows of inputs ``X [P, N]``, one per sample, weights ``U [N, M]`` and a bias, which
is the weight of a row of ones that is added here. Its outputs ``Y [P, M]`` are known. Where a ReLU follows and Y is 0,
any output up to 0 will do; the entries elsewhere are the set Omega::

    minimise  penalty(U)  subject to  |(X U - Y)_Omega|_F <= epsilon,  (X U) <= V outside Omega

A leading dimension G makes it G layers that share the penalty and epsilon: the groups of a convolution.
All is computed in float64, on the device of X.

References: Aghasi, Abdi, Nguyen, Romberg, Net-Trim: Convex Pruning of Deep Neural Networks with Performance Guarantee,
NeurIPS 2017, arXiv 1611.05162; Aghasi, Abdi, Romberg, Fast Convex Pruning of Deep Neural Networks, SIAM J. Math. Data
Sci. 2020, arXiv 1806.06457 (the ADMM); Candes, Wakin, Boyd, Enhancing Sparsity by Reweighted l1 Minimization, 2008,
arXiv 0711.1612 (the log sum).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["convex", "log_sum", "rows"]
FORMS: tuple[Form, ...] = ("convex", "log_sum", "rows")

RHO = 100.0  # of the ADMM, as in the authors' code; so are the two below
SCALE = 0.3  # X, Y and epsilon are divided by this times the largest norm of an input
STOP = 5e-9  # a change of W3 per weight at which the ADMM ends
GAP = 0.01  # between W1 and X W3, and between W2 and W3, relative, up to which it does
ITERATIONS = 2000  # at most, of each round
ETA = 0.02  # of log(|u| + eta), a share of the largest |u|: on 7 of 10 problems 0.1 leaves a third more weights
POSITIVE = 1e-6  # an output above it is in Omega
SLACK = 1e-6  # of epsilon, relative to |Y|: what rounding may take
BARRIER = 1e6  # price of an output above its limit where the least possible residual is sought
NEARLY = 1e-8  # ridge there: above what rounding leaves of that price
NEWTON = 50  # steps at most; ten are usual
SHORTEST = 1e-6  # of a Newton step, halved until it goes down
SINGULAR = 1e-12  # the least pivot of normal equations over their largest number at which they are solved


@dataclass(frozen=True)
class Trimmed:
    """A layer's sparse weights, as the solver leaves them.

    Args:
        weights: ``[N, M]`` float64, exactly 0 where they went; with G in front where X has it.
        bias: ``[M]``; zeros where none was asked for.
        nonzero: how many weights are not 0, biases not counted.
        objectives: the penalty after each round, biases included as in the paper: ``sum |u|``, ``sum log(|u| + eta)``
            with the eta of the first round, or ``sum_i |u_i|_2``.
        epsilon: what was asked.
        residual: ``|(X U - Y)_Omega|_F``: above epsilon by as much as the iterations had not converged.
        violation: by how much the highest output outside Omega exceeds its limit; 0 where none does.
        iterations: of the ADMM, of all rounds together.
    """

    weights: Tensor
    bias: Tensor
    nonzero: int
    objectives: tuple[float, ...]
    epsilon: float
    residual: float
    violation: float
    iterations: int

    @property
    def objective(self) -> float:
        """The penalty in the end."""
        return self.objectives[-1]


class Refitted(NamedTuple):
    """Weights after the least squares on their support.

    Args:
        weights: as they came, 0 in the same places.
        bias: of each output.
        error: ``|relu(X U + b) - Y|_F / |Y|_F``, without relu where none follows.
        changed: the outputs ``[M]`` whose least squares are taken; the others are better as they came.
    """

    weights: Tensor
    bias: Tensor
    error: float
    changed: Tensor


def trim(
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    omega: Tensor | None = None,
    limit: Tensor | None = None,
    form: Form = "convex",
    rounds: int = 4,
    taps: int = 1,
    bias: bool = True,
    known: Tensor | None = None,
    iterations: int = ITERATIONS,
) -> Trimmed:
    """Find a layer's sparse weights by ADMM.

    Args:
        x: inputs ``[P, N]``, or ``[G, P, N]``, of any type.
        y: outputs ``[P, M]`` or ``[G, P, M]``, after the ReLU where one follows.
        epsilon: how far, in the Frobenius norm, the outputs in Omega may be from y.
        omega: bool, shaped as y: where the output must be y. All entries by default: no ReLU follows.
        limit: V, shaped as y: the highest output elsewhere; 0 by default.
        form: "convex" ``sum |u|``; "log_sum" ``sum log(|u| + eta)``, several times the convex problem with the weights
            that the last solution gives, started where that ended; "rows" ``sum_i |u_i|_2`` over all outputs of an
            input: whole inputs go.
        rounds: of "log_sum" after the first, which is "convex"; the other forms have none.
        taps: how many columns of x that lie together are one input of "rows": a convolution's kernel positions.
        bias: whether there is one.
        known: weights with their bias as the last row, ``[N + 1, M]``, that meet epsilon, if the caller has them: then
            it is not computed whether there are any.
        iterations: of each round, at most.

    Raises:
        ValueError: shapes or numbers that do not fit; an epsilon that no weights can meet, with the least possible.

    >>> x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> found = trim(x, torch.tensor([[6.0], [0.2]]), 0.5, bias=False)
    >>> [round(weight, 3) for weight in found.weights.flatten().tolist()], found.nonzero
    ([1.847, 0.0], 1)
    """
    if form not in FORMS:
        raise ValueError(f'form "{form}" is none of {", ".join(FORMS)}')
    problem = _Problem.of(x, y, omega, limit, epsilon, bias)
    if rounds < 0 or iterations < 1 or taps < 1 or problem.inputs % taps:
        raise ValueError(f"rounds {rounds}, iterations {iterations}, taps {taps}: at least 0, 1 and a divisor of N")
    if known is None or not problem.met(known.double().reshape(problem.shape)):
        least = least_residual(x, y, omega=omega, limit=limit, bias=bias)
        if epsilon < least - SLACK * float(problem.y.norm()):
            raise ValueError(f"epsilon = {epsilon:.6g} cannot be met; the least that can is {least:.6g}")

    shrink = _shrink_rows(problem.inputs, taps) if form == "rows" else _shrink
    admm, price, eta, objectives, taken = _Admm(problem), torch.ones(()), 0.0, [], 0
    for _ in range(rounds + 1 if form == "log_sum" else 1):
        taken += admm.solve(shrink, price.to(problem.x), iterations)
        size = admm.w2.abs()
        if form == "log_sum":
            eta = eta or ETA * float(size.max()) or 1.0
            objectives.append(float((size + eta).log().sum()))
            price = 1 / (size + eta)
            price = price / price.max()
        else:
            objectives.append(float(size.sum() if form == "convex" else _row_norms(size, problem.inputs, taps).sum()))
    u = admm.w2
    output, weights = problem.x @ u, u[:, : problem.inputs]
    above = (output - problem.cap).clamp(min=0)
    return Trimmed(
        weights=weights.reshape(*x.shape[:-2], *weights.shape[1:]),
        bias=(u[:, -1] if bias else u.new_zeros(len(u), u.shape[2])).reshape(*x.shape[:-2], -1),
        nonzero=int(weights.count_nonzero()),
        objectives=tuple(objectives),
        epsilon=epsilon,
        residual=float(((output - problem.y) * problem.omega).norm()),
        violation=float(above.max()),
        iterations=taken,
    )


def refit(
    x: Tensor, y: Tensor, weights: Tensor, bias: Tensor | None, *, omega: Tensor | None = None, ridge: float = 0.0
) -> Refitted:
    """Take the shrinkage off: least squares of the weights that are not 0, output by output; the others stay 0.

    The penalty makes every weight smaller until epsilon is used up, so that plain magnitude pruning is nearer to y with
    as many weights. Least squares of the outputs in Omega alone may raise those elsewhere above 0; so what is minimised
    is, over the kept weights and the bias, which is always kept::

        sum_Omega (x u - y)^2 + sum_elsewhere max(x u, 0)^2

    It is convex, at least the squared error after the ReLU, and equal to it while no output in Omega is negative.
    An output whose error after the ReLU does not become smaller is left as it came.

    Args:
        x: inputs ``[P, N]`` or ``[G, P, N]``.
        y: outputs ``[P, M]`` or ``[G, P, M]``.
        weights: ``[N, M]`` or ``[G, N, M]``.
        bias: ``[M]`` or ``[G, M]``; None for a layer without.
        omega: as for `trim`; all entries by default.
        ridge: adds ``ridge * mean(x^2) * P * |u - u_0|^2`` for the weights u_0 that came. Without it an output whose
            samples do not determine its kept weights is refused, as the least squares would choose at will. What counts
            is each output's own least squares, not the rank of x: an input that is always 0 harms nothing while it has
            no weight, and images have such.

    Raises:
        ValueError: without a ridge, an output with more kept weights than the rank of its samples.
    """
    x, y, weights = (_lifted(tensor) for tensor in (x, y, weights))
    bias = None if bias is None else bias.detach().double()
    inside = torch.ones_like(y, dtype=torch.bool) if omega is None else omega.reshape(y.shape)
    u = weights if bias is None else torch.cat([weights, bias.reshape(len(weights), 1, -1)], 1)
    x = x if bias is None else _with_ones(x)
    kept = u != 0
    if bias is not None:
        kept[:, -1] = True
    fitted = u.clone()
    for g in range(len(x)):
        for m in range(u.shape[2]):
            columns = kept[g, :, m].nonzero()[:, 0]
            if len(columns):
                rows, start = x[g][:, columns], u[g, columns, m]
                where = f"output {g * u.shape[2] + m}"
                fitted[g, columns, m] = _one_sided(rows, y[g, :, m], inside[g, :, m], start, ridge=ridge, where=where)
    before, after = ((_rectified(x @ each, inside) - y).square().sum(1) for each in (u, fitted))
    better = after < before
    u = torch.where(better[:, None], fitted, u)
    error = math.sqrt(float(torch.where(better, after, before).sum())) / max(float(y.norm()), 1e-300)
    inputs = weights.shape[1]
    biases = u[:, -1] if bias is not None else u.new_zeros(len(u), u.shape[2])
    if not _grouped(bias, biases):
        return Refitted(u[0, :inputs], biases[0], error, better[0])
    return Refitted(u[:, :inputs], biases, error, better)


def least_residual(
    x: Tensor, y: Tensor, *, omega: Tensor | None = None, limit: Tensor | None = None, bias: bool = True
) -> float:
    """Compute the least epsilon that any weights meet: ``min |(X U - Y)_Omega|_F`` with ``X U <= V`` elsewhere.

    Where Omega is everything it is the residual of the least squares. Elsewhere outputs above their limits are priced
    at `BARRIER`; that lets them exceed it a little, so the number is at most the true one, by about its inverse.
    """
    problem = _Problem.of(x, y, omega, limit, 0.0, bias)
    if bool(problem.omega.all()):
        u = torch.linalg.pinv(problem.x) @ problem.y
    else:
        u = problem.x.new_zeros(problem.shape)
        inside = problem.omega.bool()
        for g in range(len(u)):
            for m in range(u.shape[2]):
                high = torch.where(inside[g, :, m], problem.y[g, :, m], problem.cap[g, :, m])
                u[g, :, m] = _one_sided(
                    problem.x[g], high, inside[g, :, m], u[g, :, m], ridge=NEARLY, price=BARRIER, where=""
                )
    return float(((problem.x @ u - problem.y) * problem.omega).norm())


class _Problem(NamedTuple):
    """Everything in float64, ``[G, ...]``, with the column of ones."""

    x: Tensor  # [G, P, N + 1]
    y: Tensor  # [G, P, M]
    omega: Tensor  # the same, 1 or 0
    cap: Tensor  # the same: V, infinite in Omega
    epsilon: float
    inputs: int  # N

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor, omega: Tensor | None, limit: Tensor | None, epsilon: float, bias: bool
    ) -> _Problem:
        shapes = f"x {list(x.shape)}, y {list(y.shape)}"
        if x.dim() not in (2, 3) or x.shape[:-1] != y.shape[:-1] or 0 in (*x.shape, *y.shape):
            raise ValueError(f"{shapes}: they must be [P, N] and [P, M], or both with groups in front, and not empty")
        for name, given in (("omega", omega), ("limit", limit)):
            if given is not None and given.shape != y.shape:
                raise ValueError(f"{name} {list(given.shape)} must be shaped as y {list(y.shape)}")
        if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
            raise ValueError(f"{shapes}: NaN or infinity in them")
        if not epsilon >= 0 or math.isinf(epsilon):
            raise ValueError(f"epsilon = {epsilon}; it must be at least 0 and finite")
        x, y = _lifted(x), _lifted(y)
        inside = torch.ones_like(y, dtype=torch.bool) if omega is None else omega.reshape(y.shape).bool()
        high = torch.zeros_like(y) if limit is None else limit.to(y).reshape(y.shape)
        cap = high.masked_fill(inside, math.inf)
        return cls(_with_ones(x) if bias else x, y, inside.to(y), cap, epsilon, x.shape[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.x), self.x.shape[2], self.y.shape[2]

    def met(self, u: Tensor) -> bool:
        """Say whether these weights meet the constraints, as far as rounding lets them."""
        output, size = self.x @ u, float(self.y.norm())
        within = float(((output - self.y) * self.omega).norm()) <= self.epsilon + SLACK * size
        return within and float((output - self.cap).max()) <= POSITIVE + SLACK * size


class _Admm:
    """The scaled ADMM, in the letters of the paper's Algorithm 1, but that samples are rows; goes on where it stopped.

    W1 is what the layer computes, held to the constraints; W2 the weights, held sparse; W3 ties both.
    """

    def __init__(self, problem: _Problem) -> None:
        norms = problem.x.square().sum(1).max()  # the largest entry of X^T X is on its diagonal
        scale = SCALE * math.sqrt(float(norms)) or 1.0
        self.x, self.y, self.cap = problem.x / scale, problem.y / scale, problem.cap / scale
        self.omega, self.epsilon = problem.omega, problem.epsilon / scale
        # (X^T X + I)^-1, or (X X^T + I)^-1 where that is smaller. The eigenvalues lie between 1 and 11 times the size:
        # the inverse is accurate, and a product with it takes half as long as two triangular solutions.
        self.wide = self.x.shape[1] < self.x.shape[2]
        c = self.x @ self.x.mT if self.wide else self.x.mT @ self.x
        c.diagonal(dim1=1, dim2=2).add_(1)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(c))
        self.w2, self.w3, self.u2 = (self.x.new_zeros(problem.shape) for _ in range(3))
        self.u1 = torch.zeros_like(self.y)
        self.output = torch.zeros_like(self.y)  # X W3

    def solve(self, shrink: Callable[[Tensor, Tensor], Tensor], price: Tensor, iterations: int) -> int:
        """Iterate, with weights of the penalty that broadcast to U; return how often."""
        threshold, stop = price / RHO, STOP * self.w3.numel()
        done, settled = 0, False
        while done < iterations and not settled:
            z = self.output - self.u1
            off = (z - self.y).mul_(self.omega)
            away = float(off.norm())
            share = min(1.0, self.epsilon / away) if away else 1.0
            w1 = torch.minimum(z, self.cap).sub_(off, alpha=1 - share)  # on Omega y + share (z - y)
            self.w2 = shrink(self.w3 - self.u2, threshold)
            w3 = self._tied(w1 + self.u1, self.w2 + self.u2)
            gaps = w1.sub_(self.output), self.w2 - w3
            self.u1 += gaps[0]
            self.u2 += gaps[1]
            # The paper stops by the change of W3 alone, which can stand still while the multipliers still move.
            sizes = self.output, w3
            settled = float((w3 - self.w3).norm()) < stop and all(map(_small, gaps, sizes))
            self.w3, done = w3, done + 1
        return done

    def _tied(self, goal: Tensor, near: Tensor) -> Tensor:
        """Return W3 = ``(X^T X + I)^-1 (X^T goal + near)`` and note X W3; step 4."""
        if self.wide:  # the same by Woodbury's identity, with products of fewer samples than inputs
            left = self.inverse @ torch.baddbmm(goal, self.x, near, alpha=-1)
            self.output = goal - left
            return torch.baddbmm(near, self.x.mT, left)
        w3 = self.inverse @ torch.baddbmm(near, self.x.mT, goal)
        self.output = self.x @ w3
        return w3


def _small(gap: Tensor, size: Tensor) -> bool:
    return float(gap.norm()) <= GAP * float(size.norm())


def _shrink(u: Tensor, threshold: Tensor) -> Tensor:
    """Soft threshold: nearer to 0 by the threshold, and exactly 0 within it."""
    return u - torch.clamp(u, -threshold, threshold)


def _shrink_rows(inputs: int, taps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the soft threshold of the norms of rows: each shorter by the threshold, or 0."""

    def shrink(u: Tensor, threshold: Tensor) -> Tensor:
        norms = _row_norms(u, inputs, taps)
        factor = (1 - threshold / norms.clamp(min=1e-300)).clamp(min=0)
        spread = torch.cat([factor[:, : inputs // taps].repeat_interleave(taps, 1), factor[:, inputs // taps :]], 1)
        return u * spread[..., None]

    return shrink


def _row_norms(u: Tensor, inputs: int, taps: int) -> Tensor:
    """Return the norm of each input's weights to all outputs, and of the biases ``[G, N / taps (+ 1)]``."""
    rows = u[:, :inputs].reshape(len(u), inputs // taps, -1).norm(dim=2)
    return torch.cat([rows, u[:, inputs:].norm(dim=2)], 1)


def _one_sided(
    x: Tensor, y: Tensor, inside: Tensor, start: Tensor, *, ridge: float, where: str, price: float | None = None
) -> Tensor:
    """Minimise ``sum_inside (x u - y)^2 + sum_outside max(x u - high, 0)^2 + ridge * mean(x^2) * P * |u - start|^2``.

    Newton's method: least squares of what is inside or too high, until those no longer change, which is exact. A step
    that does not go down is halved. Which rows count changes little from step to step, and so do the normal equations.

    Args:
        x: ``[P, K]``.
        y: ``[P]``: the output inside, the limit outside (of a `price`), or anything (0 is the limit without a price).
        inside: bool ``[P]``.
        start: ``[K]``.
        ridge: relative to the mean of the diagonal of ``x^T x``.
        where: names the output in an error.
        price: of the squares outside, 1 by default.
    """
    goal = y if price is not None else torch.where(inside, y, 0)
    weight = torch.where(inside, 1.0, 1.0 if price is None else price).to(x)
    pull = ridge * float(x.square().mean()) * len(x)

    def value(off: Tensor, u: Tensor) -> tuple[float, Tensor]:
        counted = inside | (off > 0)
        return float((weight * counted) @ (off * off) + pull * (u - start).square().sum()), counted

    u, off, transposed = start, x @ start - goal, x.mT.contiguous()
    best, active = value(off, u)
    gram, summed = x.new_zeros(x.shape[1], x.shape[1]), torch.zeros_like(inside)
    for _ in range(NEWTON):
        changed = (active != summed).nonzero()[:, 0]
        if not len(changed):
            break
        rows = x[changed]
        gram.addmm_((rows * (weight * (active.to(x) - summed.to(x)))[changed, None]).mT, rows)
        summed = active
        system = gram.clone()
        system.diagonal().add_(pull)
        factor, info = torch.linalg.cholesky_ex(system)
        if int(info) or (not ridge and float(factor.diagonal().min()) ** 2 < SINGULAR * float(system.diagonal().max())):
            rank = int(torch.linalg.matrix_rank(x[active]))
            raise ValueError(
                f"{where}: its {int(active.sum())} samples are of rank {rank}, which does not determine its "
                f"{x.shape[1]} kept inputs (bias included); give more samples, or ask for a ridge, say 1e-6"
            )
        slope = transposed @ (weight * active * off) + pull * (u - start)
        step = -torch.cholesky_solve(slope[:, None], factor)[:, 0]
        moved, length = x @ step, 1.0
        while (found := value(off + length * moved, u + length * step))[0] > best and length > SHORTEST:
            length /= 2
        if found[0] > best:
            break
        (best, active), u, off = found, u + length * step, off + length * moved
    return u


def _lifted(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().double()
    return tensor[None] if tensor.dim() == 2 else tensor


def _grouped(bias: Tensor | None, biases: Tensor) -> bool:
    return bias.dim() == 2 if bias is not None else len(biases) > 1


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)


def _rectified(output: Tensor, inside: Tensor) -> Tensor:
    """Return the outputs after the ReLU, if one follows: if anything is outside Omega."""
    return output if bool(inside.all()) else output.clamp(min=0)
