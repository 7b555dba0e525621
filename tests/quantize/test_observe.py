"""What each observer covers, beside the same found directly on all numbers at once."""

import numpy as np
import pytest
import torch

from edgewise.quantize.affine import QSpec, choose, fake_quantize
from edgewise.quantize.observe import OBSERVERS, MinMax, MovingAverage, Percentile

U8 = QSpec()
S8 = QSpec(signed=True, symmetric=True)
ROWS = QSpec(signed=True, symmetric=True, block=(1, -1))


def numbers(count: int = 20_000, seed: int = 0) -> torch.Tensor:
    """Return what an activation may hold: skewed, many zeros, and a few far away."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator).clamp(min=-0.3) * torch.rand(count, generator=generator)
    x[::997] *= 6
    x[::5] = 0
    return x


def found(name: str, x: torch.Tensor, spec: QSpec = U8, parts: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    observer = OBSERVERS[name](spec)
    for part in x.chunk(parts, -1):
        observer.update(part)
    return observer.range()


def squared_error(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, spec: QSpec) -> float:
    return (fake_quantize(x, choose(low, high, spec), spec) - x).double().square().sum().item()


def test_minmax_is_the_extremes():
    x = numbers()
    low, high = found("minmax", x)
    assert (low, high) == (x.min(), x.max())


def test_zero_is_always_covered():
    low, high = found("minmax", torch.linspace(2, 3, 50))
    assert (low.item(), high.item()) == (0, 3)


def test_a_moving_average_is_of_the_batches_extremes():
    observer = MovingAverage(U8, momentum=0.25)
    for high in (1.0, 5.0, 3.0):
        observer.update(torch.tensor([-high / 2, 0.0, high]))
    low, high = observer.range()
    assert high.item() == pytest.approx(((1 * 0.75 + 5 * 0.25) * 0.75) + 3 * 0.25)
    assert low.item() == pytest.approx(-high.item() / 2)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_is_numpys_to_a_bin(percentile):
    x = numbers()
    observer = Percentile(U8, percentile)
    for part in x.split(3000):
        observer.update(part)

    low, high = observer.range()

    cut = (100 - percentile) / 2
    expected = np.percentile(x.numpy(), [cut, 100 - cut], method="inverted_cdf")
    bin_width = 2.0 ** torch.frexp(x.abs().max()).exponent.item() / 2048
    assert low.item() == pytest.approx(min(0, expected[0]), abs=1.01 * bin_width)
    assert high.item() == pytest.approx(max(0, expected[1]), abs=1.01 * bin_width)


@pytest.mark.parametrize("spec", [U8, S8, QSpec(bits=4), QSpec(bits=4, signed=True, symmetric=True)])
def test_mse_finds_a_range_as_good_as_a_search_on_the_numbers_themselves(spec):
    x = numbers()
    low, high = x.min(), x.max()
    shares = torch.arange(1, 81) / 80
    pairs = [(a * low, b * high) for a in shares[::4] for b in shares]

    ours = squared_error(x, *found("mse", x, spec), spec)

    best = min(squared_error(x, a, b, spec) for a, b in pairs)
    assert ours <= 1.05 * best
    assert ours < squared_error(x, low, high, spec) or best == squared_error(x, low, high, spec)


def test_entropy_is_the_least_divergence_written_out():
    """As Migacz has it, for numbers above 0: outliers in the last bin of P, none in Q, each code spread evenly."""
    x = numbers().abs()
    _, high = found("entropy", x)

    reach = 2.0 ** torch.frexp(x.max()).exponent.item()
    counts, edges = np.histogram(x[x > 0].numpy(), 2048, (0, reach))
    centres = (edges[1:] + edges[:-1]) / 2

    def divergence(limit: float) -> float:
        codes = np.rint(centres.astype(np.float32) / np.float32(limit / 255))
        inside = codes <= 255
        p = np.where(inside, counts, 0).astype(float)
        p[inside.sum() - 1] += counts[~inside].sum()
        q = np.zeros_like(p)
        for code in range(256):
            filled = (codes == code) & (counts > 0)
            if filled.any():
                q[filled] = counts[filled].mean()
        p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
        return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())

    tried = {share: divergence(x.max().item() * share / 80) for share in range(1, 81)}
    best = min(tried, key=tried.__getitem__)
    assert high.item() == pytest.approx(x.max().item() * best / 80, rel=1e-4)
    assert best < 80  # the outliers are cut off


@pytest.mark.parametrize("name", ["minmax", "percentile", "mse", "entropy"])
def test_how_the_numbers_come_in_batches_does_not_matter(name):
    x = numbers(6000)
    x[:1500] = 0
    x[1500:3000] *= 1e-3

    once, often = found(name, x, parts=1), found(name, x, parts=16)

    torch.testing.assert_close(once, often, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_each_channel_is_as_it_would_be_alone(name):
    weight = torch.randn(5, 300, generator=torch.Generator().manual_seed(3)) * torch.logspace(-4, 1, 5)[:, None]

    low, high = found(name, weight, ROWS, parts=1)

    assert low.shape == high.shape == (5, 1)
    for row, a, b in zip(weight, low, high, strict=True):
        alone = found(name, row, S8, parts=1)
        torch.testing.assert_close((a[0], b[0]), (alone[0].squeeze(), alone[1].squeeze()), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_nothing_but_zero_has_an_empty_range(name):
    low, high = found(name, torch.zeros(100))
    assert (low.item(), high.item()) == (0, 0)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_a_constant_is_covered_exactly_enough(name):
    low, high = found(name, torch.full((100,), 2.5))
    assert low.item() == 0
    assert high.item() == pytest.approx(2.5, rel=0.02)


def test_what_was_never_fed_has_no_range():
    with pytest.raises(ValueError, match="nothing was seen yet"):
        MinMax(U8).range()


def test_another_number_of_blocks_is_refused():
    observer = MinMax(ROWS)
    observer.update(torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"a tensor of \[5, 1\] blocks, after one of \[4, 1\]"):
        observer.update(torch.zeros(5, 8))


@pytest.mark.parametrize("percentile", [50, 100.1, -1])
def test_a_percentile_that_is_none_is_refused(percentile):
    with pytest.raises(ValueError, match="more than 50, at most 100"):
        Percentile(U8, percentile)
