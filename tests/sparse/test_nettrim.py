"""Net-Trim's solver: by hand, against the ADMM's formulas in a loop, scipy's optima, and what must hold anyway."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from edgewise.sparse import least_residual, refit, trim

X2 = torch.tensor([[3.0, 0.0], [0.0, 4.0]])


def problem(
    seed: int = 0, samples: int = 120, inputs: int = 12, outputs: int = 6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, y after a ReLU, Omega, and the weights with the bias that made y."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    u = torch.randn(inputs + 1, outputs, generator=generator, dtype=torch.float64)
    u *= torch.rand(u.shape, generator=generator) < 0.5
    u += 0.05 * torch.randn(u.shape, generator=generator, dtype=torch.float64)
    y = (torch.cat([x, torch.ones(samples, 1)], 1) @ u).clamp(min=0)
    return x, y, y > 1e-6, u


def admm(x: Tensor, y: Tensor, omega: Tensor, epsilon: float, iterations: int) -> np.ndarray:
    """Transcribe the ADMM as the paper writes it, with samples as columns and plain inverses."""
    X, Y, om = torch.cat([x, torch.ones(len(x), 1)], 1).T.numpy(), y.T.numpy(), omega.T.numpy()
    c0 = 0.3 * math.sqrt((X @ X.T).max())
    X, Y, eps, rho = X / c0, Y / c0, epsilon / c0, 100
    N, M = len(X), len(Y)
    C = np.linalg.inv(X @ X.T + np.eye(N))
    W2, W3, U1, U2 = np.zeros((N, M)), np.zeros((N, M)), np.zeros_like(Y), np.zeros((N, M))
    for _ in range(iterations):
        Z = W3.T @ X - U1
        W1 = np.minimum(Z, 0)
        away = math.sqrt(sum((Z[i, j] - Y[i, j]) ** 2 for i, j in zip(*np.nonzero(om), strict=True)))
        W1[om] = (Y + min(1, eps / away) * (Z - Y))[om]
        T = W3 - U2
        W2 = np.sign(T) * np.maximum(np.abs(T) - 1 / rho, 0)
        old, W3 = W3, C @ (X @ (W1 + U1).T + W2 + U2)
        U1, U2 = U1 + W1 - W3.T @ X, U2 + W2 - W3
        if np.linalg.norm(W3 - old) < N * M * 5e-9:
            break
    return W2


def test_by_hand() -> None:
    # min |a| + |b| with (3a - 6)^2 + (4b - 0.4)^2 <= 0.25: the gradients 3 r and 4 s are equal, so r = 4/3 s, and
    # r^2 + s^2 = 0.25 gives r = -0.4, s = -0.3.
    found = trim(X2, torch.tensor([[6.0], [0.4]]), 0.5, bias=False)
    assert found.weights.flatten().tolist() == pytest.approx([5.6 / 3, 0.025], abs=1e-6)
    assert (found.nonzero, found.bias.tolist()) == (2, [0.0])
    assert found.objective == pytest.approx(5.6 / 3 + 0.025, abs=1e-6)
    assert found.residual == pytest.approx(0.5, abs=1e-6)
    # With 0.2 in place of 0.4 b is 0, where s = -0.2, and r^2 = 0.25 - 0.04.
    found = trim(X2, torch.tensor([[6.0], [0.2]]), 0.5, bias=False)
    assert found.weights[1, 0] == 0
    assert (found.nonzero, float(found.weights[0, 0])) == (1, pytest.approx((6 - math.sqrt(0.21)) / 3, abs=1e-6))


def test_outside_omega_only_the_limit_holds() -> None:
    y, omega = torch.tensor([[6.0], [0.0]]), torch.tensor([[True], [False]])
    x = torch.tensor([[3.0], [-3.0]])
    found = trim(x, y, 0.3, omega=omega, bias=False)  # -3a <= 0 is no constraint: a = (6 - 0.3) / 3
    assert float(found.weights) == pytest.approx(1.9, abs=1e-6)
    both = trim(x, y, 4.5, bias=False)  # all in Omega: (3a - 6)^2 + (3a)^2 <= 20.25, so 3a = 3 - sqrt(1.125)
    assert float(both.weights) == pytest.approx((3 - math.sqrt(1.125)) / 3, abs=1e-6)
    asked = {"omega": omega, "limit": torch.tensor([[0.0], [-1.5]]), "bias": False}
    limited = trim(torch.tensor([[3.0], [3.0]]), y, 7.6, **asked)  # 3a <= -1.5 elsewhere, so 7.5 from y at the least
    assert float(limited.weights) == pytest.approx(-0.5, abs=1e-6)
    with pytest.raises(ValueError, match=r"epsilon = 6 cannot be met; the least that can is 7\.(5|49999)"):
        trim(torch.tensor([[3.0], [3.0]]), y, 6.0, **asked)


@pytest.mark.parametrize("gamma", [0.05, 0.2])
def test_is_the_papers_admm(gamma: float) -> None:
    x, y, omega, u = problem()
    epsilon = gamma * float(y.norm())
    found = trim(x, y, epsilon, omega=omega, known=u)
    oracle = admm(x, y, omega, epsilon, 2000)
    ours = torch.cat([found.weights, found.bias[None]]).numpy()
    assert np.abs(ours - oracle).max() < 1e-9
    assert ((ours != 0) == (oracle != 0)).all()
    assert found.objective == pytest.approx(np.abs(oracle).sum())


def test_with_fewer_samples_than_inputs_too() -> None:
    x, y, omega, u = problem(samples=15, inputs=40)
    epsilon = 0.1 * float(y.norm())
    found = trim(x, y, epsilon, omega=omega, known=u, iterations=300)
    oracle = admm(x, y, omega, epsilon, 300)
    assert np.abs(torch.cat([found.weights, found.bias[None]]).numpy() - oracle).max() < 1e-9


def test_is_scipys_optimum() -> None:
    x, y, omega, u = problem(seed=3, samples=25, inputs=4, outputs=1)
    epsilon = 0.2 * float(y.norm())
    found = trim(x, y, epsilon, omega=omega, known=u, iterations=20000)
    X, Y, om = np.c_[x.numpy(), np.ones(25)], y.numpy()[:, 0], omega.numpy()[:, 0]

    def residual(v: np.ndarray) -> np.ndarray:
        return X @ (v[:5] - v[5:]) - Y

    constraints = [
        {"type": "ineq", "fun": lambda v: epsilon**2 - (residual(v)[om] ** 2).sum()},
        {"type": "ineq", "fun": lambda v: -(X @ (v[:5] - v[5:]))[~om]},
    ]
    start = np.r_[np.maximum(u.numpy()[:, 0], 0), np.maximum(-u.numpy()[:, 0], 0)]
    best = minimize(
        lambda v: v.sum(),
        start,
        bounds=[(0, None)] * 10,
        constraints=constraints,
        options={"maxiter": 2000, "ftol": 1e-12},
    )
    assert best.success
    assert found.objective == pytest.approx(best.fun, rel=1e-4)


def test_an_exact_fit_is_the_linear_programme() -> None:
    """With epsilon 0 and fewer samples than inputs: min |u|_1 with X u = y."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    y = x[:, [2, 7]] @ torch.tensor([[1.5], [-2.0]], dtype=torch.float64)
    best = linprog(np.ones(24), A_eq=np.c_[x.numpy(), -x.numpy()], b_eq=y.numpy()[:, 0])
    found = trim(x, y, 0.0, bias=False, iterations=20000)
    assert found.objective == pytest.approx(best.fun, rel=1e-5)


@pytest.mark.parametrize("form", ["convex", "log_sum", "rows"])
def test_what_comes_back_is_feasible(form: str) -> None:
    x, y, omega, u = problem()
    found = trim(x, y, 0.1 * float(y.norm()), omega=omega, form=form, known=u)
    output = x @ found.weights + found.bias
    assert found.residual == pytest.approx(float((output - y)[omega].norm()))
    assert found.residual <= found.epsilon * (1 + 1e-4)
    assert found.violation == pytest.approx(max(0.0, float(output[~omega].max())))
    assert found.violation < 1e-2 * float(y.max())
    assert found.nonzero == int((found.weights != 0).sum())
    assert form == "rows" or found.nonzero < found.weights.numel()


def test_reweighting_goes_down_and_leaves_fewer() -> None:
    """On the synthetic check: truth 15 % dense with 2 % of noise on all weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 60, generator=generator, dtype=torch.float64)
    u = torch.randn(60, 30, generator=generator, dtype=torch.float64) * (torch.rand(60, 30, generator=generator) < 0.15)
    u = torch.cat([u + 0.02 * torch.randn(60, 30, generator=generator, dtype=torch.float64), torch.zeros(1, 30)])
    y = (x @ u[:-1]).clamp(min=0)
    for gamma in (0.05, 0.1):
        asked = {"epsilon": gamma * float(y.norm()), "omega": y > 1e-6, "known": u}
        convex, log_sum = trim(x, y, **asked), trim(x, y, **asked, form="log_sum")
        assert len(log_sum.objectives) == 5
        slack = 1e-4 * abs(log_sum.objective)  # the rounds end before they have converged
        assert all(b <= a + slack for a, b in zip(log_sum.objectives, log_sum.objectives[1:], strict=False))
        assert log_sum.objectives[1] < log_sum.objectives[0] - 10 * slack
        assert log_sum.nonzero <= 0.7 * convex.nonzero
        assert max(convex.residual, log_sum.residual) <= 1.0001 * asked["epsilon"]
    once = trim(x, y, **asked, form="log_sum", rounds=0)
    assert torch.equal(once.weights, convex.weights)


def test_rows_remove_whole_inputs() -> None:
    """Inputs that are orthogonal do not stand in for each other: it is the weak ones that go."""
    x, _, _, u = problem(samples=200)
    x = torch.linalg.qr(torch.cat([torch.ones(200, 1), x], 1)).Q[:, 1:] * math.sqrt(200)
    u[[1, 4, 5]] *= 0.001
    y = x @ u[:-1] + u[-1]
    found = trim(x, y, 0.1 * float(y.norm()), form="rows")
    gone, norms = (found.weights == 0).all(1), u[:-1].norm(dim=1)
    assert bool(gone[[1, 4, 5]].all())
    assert norms[gone].max() < norms[~gone].min()
    assert bool((found.weights[~gone] != 0).all())
    together = trim(x, y, 0.1 * float(y.norm()), form="rows", taps=2)
    lost = (together.weights == 0).all(1)
    assert lost.nonzero().flatten().tolist() == [4, 5]  # one input now; 1 stays with 0, and 11 with 10
    assert found.objective == pytest.approx(float(torch.cat([found.weights, found.bias[None]]).norm(dim=1).sum()))


def test_rows_is_the_group_problems_optimum() -> None:
    """At the optimum, moving a little along feasible directions does not shorten the rows: against random ones."""
    x, y, _, u = problem(seed=1, samples=60, inputs=5, outputs=3)
    y = x @ u[:-1] + u[-1]
    found = trim(x, y, 0.3 * float(y.norm()), form="rows", iterations=20000)
    best = torch.cat([found.weights, found.bias[None]])
    ones = torch.cat([x, torch.ones(60, 1)], 1)
    assert found.objective == pytest.approx(float(best.norm(dim=1).sum()))
    tried = 0
    for seed in range(2000):
        other = best + 0.02 * torch.randn(
            best.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        if float((ones @ other - y).norm()) <= found.epsilon:
            tried += 1
            assert float(other.norm(dim=1).sum()) >= found.objective - 1e-6
    assert tried > 100


def test_groups_share_epsilon() -> None:
    x, y, omega, u = problem()
    twice = (torch.stack([x, x]), torch.stack([y, y]), torch.stack([omega, omega]))
    epsilon = 0.1 * float(y.norm())
    one = trim(x, y, epsilon, omega=omega, known=u)
    two = trim(twice[0], twice[1], math.sqrt(2) * epsilon, omega=twice[2], known=torch.stack([u, u]))
    assert two.weights.shape == (2, 12, 6)
    assert two.bias.shape == (2, 6)
    assert float((two.weights - one.weights).abs().max()) < 1e-5
    fitted = refit(twice[0], twice[1], two.weights, two.bias, omega=twice[2])
    assert fitted.weights.shape == (2, 12, 6)
    assert fitted.error == pytest.approx(refit(x, y, one.weights, one.bias, omega=omega).error, rel=1e-3)


def test_refit_by_hand() -> None:
    x = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 5.0]])
    y = torch.tensor([[2.0], [3.0], [7.0]])
    fitted = refit(x, y, torch.tensor([[1.0], [0.0]]), None)  # the first input alone: (2 + 6 + 21) / 14
    assert fitted.weights.flatten().tolist() == pytest.approx([29 / 14, 0.0])
    assert fitted.weights[1, 0] == 0
    assert fitted.changed.tolist() == [True]
    assert fitted.error == pytest.approx(math.sqrt(62 - 29**2 / 14) / math.sqrt(62))


def test_refit_is_numpys_least_squares_and_keeps_what_is_better() -> None:
    x, y, _, u = problem()
    y = x @ u[:-1] + u[-1]
    sparse = trim(x, y, 0.3 * float(y.norm()))
    fitted = refit(x, y, sparse.weights, sparse.bias)
    for m in range(y.shape[1]):
        columns = sparse.weights[:, m].nonzero()[:, 0]
        oracle = np.linalg.lstsq(np.c_[x[:, columns].numpy(), np.ones(len(x))], y[:, m].numpy(), rcond=None)[0]
        assert fitted.weights[columns, m].tolist() == pytest.approx(oracle[:-1].tolist())
        assert float(fitted.bias[m]) == pytest.approx(oracle[-1])
    again = refit(x, y, fitted.weights, fitted.bias)
    assert again.error == pytest.approx(fitted.error)
    assert torch.equal(fitted.weights != 0, sparse.weights != 0)


def test_refit_minds_what_a_relu_lets_through() -> None:
    """Against scipy on the one-sided problem; least squares of Omega alone are worse after the ReLU."""
    x, y, omega, u = problem(seed=2, samples=60)
    weights = u[:-1] * (u[:-1].abs() > 0.6)
    fitted = refit(x, y, weights, u[-1], omega=omega)

    def error(weights: Tensor, bias: Tensor) -> float:
        return float(((x @ weights + bias).clamp(min=0) - y).norm() / y.norm())

    assert fitted.error == pytest.approx(error(fitted.weights, fitted.bias))
    assert fitted.error < error(weights, u[-1])
    naive, bias = torch.zeros_like(weights), torch.zeros(6, dtype=torch.float64)
    for m in range(6):
        columns = torch.cat([weights[:, m].nonzero()[:, 0], torch.tensor([12])])
        ones = torch.cat([x, torch.ones(60, 1)], 1)[:, columns]
        solved = torch.linalg.lstsq(ones[omega[:, m]], y[omega[:, m], m]).solution
        naive[columns[:-1], m], bias[m] = solved[:-1], solved[-1]

        def one_sided(v: np.ndarray, ones: Tensor = ones, m: int = m) -> float:
            off = ones.numpy() @ v - y[:, m].numpy()
            return float((np.where(omega[:, m].numpy(), off, np.maximum(off, 0)) ** 2).sum())

        if fitted.changed[m]:
            v = torch.cat([fitted.weights[columns[:-1], m], fitted.bias[m : m + 1]]).numpy()
            assert one_sided(v) <= minimize(one_sided, v, tol=1e-12).fun + 1e-8
            assert one_sided(v) <= minimize(one_sided, np.zeros(len(v)), tol=1e-12).fun + 1e-6
    assert fitted.error < error(naive, bias)


def test_too_few_samples_are_refused_without_a_ridge() -> None:
    x, y, _, u = problem(samples=10)
    with pytest.raises(ValueError, match=r"output 0: its 10 samples are of rank 10, .* its 13 kept inputs"):
        refit(x, y, torch.ones(12, 6), u[-1])
    fitted = refit(x, y, u[:-1] + 0.1, u[-1], ridge=1e-6)
    assert fitted.error < 1e-3
    doubled = torch.randn(40, 3, dtype=torch.float64)
    doubled[:, 2] = 2 * doubled[:, 1]
    two = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])  # the second output keeps both
    with pytest.raises(ValueError, match=r"output 1: its 40 samples are of rank 3, .* its 4 kept inputs"):
        refit(doubled, doubled[:, :2], two, torch.zeros(2))
    always = torch.randn(40, 3, dtype=torch.float64)
    always[:, 2] = 0  # an input that is always 0 harms nothing without a weight
    assert refit(always, always[:, :1], torch.tensor([[0.5], [0.0], [0.0]]), torch.zeros(1)).error < 1e-12


def test_the_least_epsilon() -> None:
    x, _, _, u = problem()
    generator = torch.Generator().manual_seed(9)
    y = x @ u[:-1] + u[-1] + torch.randn(120, 6, generator=generator, dtype=torch.float64)
    ones = np.c_[x.numpy(), np.ones(120)]
    oracle = math.sqrt(np.linalg.lstsq(ones, y.numpy(), rcond=None)[1].sum())
    assert least_residual(x, y) == pytest.approx(oracle)
    with pytest.raises(ValueError, match=rf"epsilon = 1 cannot be met; the least that can is {oracle:.6g}"):
        trim(x, y, 1.0)
    assert trim(x, y, 1.05 * oracle).residual <= 1.0501 * oracle


def test_the_least_epsilon_under_the_inequality() -> None:
    x = torch.tensor([[1.0], [1.0]])  # the same sample shall give 3, and at most 0
    y, omega = torch.tensor([[3.0], [0.0]]), torch.tensor([[True], [False]])
    assert least_residual(x, y, omega=omega) == pytest.approx(3, rel=1e-6)
    with pytest.raises(ValueError, match="epsilon = 2 cannot be met; the least that can is 3"):
        trim(x, y, 2.0, omega=omega)
    assert trim(x, y, 3.0, omega=omega).nonzero == 0


def test_the_errors() -> None:
    x, y, _, _ = problem()
    for arguments, message in (
        ({"y": y[:-1]}, r"x \[120, 12\], y \[119, 6\]: they must be \[P, N\] and \[P, M\]"),
        ({"omega": y[:, :2] > 0}, r"omega \[120, 2\] must be shaped as y \[120, 6\]"),
        ({"epsilon": -1.0}, r"epsilon = -1.0; it must be at least 0"),
        ({"form": "l0"}, 'form "l0" is none of convex, log_sum, rows'),
        ({"taps": 5}, "taps 5: at least 0, 1 and a divisor of N"),
        ({"x": x * torch.nan}, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            trim(**({"x": x, "y": y, "epsilon": 1e3} | arguments))


def test_dead_layers() -> None:
    x = torch.zeros(5, 3)
    found = trim(x, torch.zeros(5, 2), 0.0, omega=torch.zeros(5, 2, dtype=torch.bool))
    assert (found.nonzero, found.residual, found.violation) == (0, 0.0, 0.0)
