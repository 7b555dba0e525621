"""Kneedle against the package kneed, curves by hand, and the rate that is read from a curve."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kneed import DataGenerator, KneeLocator
from scipy.optimize import isotonic_regression

from edgewise.prune.knee import Knee, knee, knee_rate, smooth

levels = st.integers(0, 40).map(lambda level: level / 40)  # coarse, so that plateaus and ties occur
curves = st.lists(levels, min_size=2, max_size=30)
sensitivities = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])


def kneed_index(x: np.ndarray, y: np.ndarray, sensitivity: float, curve: str = "concave") -> int | None:
    found = KneeLocator(x, y, S=sensitivity, curve=curve, direction="decreasing").knee
    return None if found is None else int(np.flatnonzero(x == found)[0])


@given(curves, sensitivities, st.booleans(), st.booleans())
@example([1.0, 1.0, 0.5, 0.5, 0.0], 1.0, True, True)
@example([1.0, 0.0], 0.0, True, True)
def test_ours_is_the_knee_of_kneed(accuracy: list[float], sensitivity: float, falling: bool, even: bool) -> None:
    y = smooth(accuracy) if falling else np.array(accuracy)
    if y.max() == y.min():
        assert knee(range(len(y)), y) is None  # kneed divides by 0
        return
    x = np.arange(len(y)) / len(y) if even else np.sqrt(np.arange(len(y)))
    assert knee(x, y, sensitivity) == kneed_index(x, y, sensitivity)


@given(st.floats(0.1, 8), st.integers(4, 60), sensitivities)
def test_ours_is_the_knee_of_kneed_on_smooth_curves(power: float, n: int, sensitivity: float) -> None:
    x = np.linspace(0, 0.95, n)
    assert knee(x, 1 - x**power, sensitivity) == kneed_index(x, 1 - x**power, sensitivity)


def test_the_curves_of_the_paper() -> None:
    """Figure 2 of the paper: y = -1 / (x + 0.1) + 5 on ten points has its knee at 0.22; mirrored it falls, at 0.78."""
    x, y = DataGenerator.figure2()
    assert x[len(x) - 1 - knee(x, y[::-1])] == pytest.approx(0.22, abs=0.005)
    x, y = DataGenerator.concave_decreasing()
    assert knee(x, y) == kneed_index(x, y, 1.0)
    x, y = DataGenerator.noisy_gaussian(N=300)  # rises; seen from its other end it falls
    mirrored = (x.max() - x)[::-1]
    assert knee(mirrored, y[::-1]) == kneed_index(mirrored, y[::-1], 1.0)


@given(curves)
def test_a_knee_knows_no_units(accuracy: list[float]) -> None:
    y = smooth(accuracy)
    steps = np.round(y * 40).astype(int)  # whole numbers, so that scaling rounds nothing across a tie
    assert knee(range(len(y)), steps) == knee(np.arange(len(y)) * 4 + 8, steps * 2 - 16)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_smoothed_curves_fall(accuracy: list[float]) -> None:
    for smoothing in ("minimum", "isotonic"):
        assert (np.diff(smooth(accuracy, smoothing)) <= 1e-12).all()
    assert (smooth(accuracy) <= np.array(accuracy)).all()
    fitted = isotonic_regression(accuracy, increasing=False).x
    np.testing.assert_allclose(smooth(accuracy, "isotonic"), fitted, rtol=0, atol=1e-12)
    assert smooth(accuracy, "none").tolist() == accuracy


RATES = (0.0, 0.2, 0.4, 0.6, 0.8)


@pytest.mark.parametrize(
    ("accuracy", "settings", "rate", "found"),
    [
        ([0.9, 0.895, 0.89, 0.88, 0.3], {}, 0.6, True),
        ([0.9, 0.9, 0.899, 0.898, 0.897], {}, 0.8, False),  # never falls by half a point
        ([0.9, 0.9, 0.9, 0.9, 0.9], {}, 0.8, False),
        ([0.9, 0.4, 0.35, 0.32, 0.3], {}, 0.0, False),  # falls at once: the knee at the last rate is none
        ([0.9, 0.4, 0.35, 0.32, 0.3], {"tolerance": 50.0}, 0.2, False),
        ([0.9, 0.75, 0.6, 0.45, 0.3], {}, 0.0, False),  # a straight line
        ([0.9, 0.895, 0.5, 0.89, 0.3], {"smoothing": "none", "sensitivity": 0.5}, 0.6, True),
        ([0.9, 0.895, 0.5, 0.89, 0.3], {}, 0.2, False),  # the dip stays a dip, and what falls twice has no knee
    ],
)
def test_the_rate_by_hand(accuracy: list[float], settings: dict[str, object], rate: float, found: bool) -> None:
    assert knee_rate(RATES, accuracy, Knee(**settings)) == (rate, found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": (0.5,)}, "at least two shares"),
        ({"rates": (0.5, 0.4)}, "ascending"),
        ({"rates": (0.0, 0.4)}, "between 0 and 1"),
        ({"rates": (0.5, 1.0)}, "between 0 and 1"),
        ({"calibration": 1}, "calibration = 1"),
        ({"images": 0}, "images = 0"),
        ({"sensitivity": -1.0}, "sensitivity = -1.0: 0 or more"),
        ({"tolerance": -0.1}, "tolerance = -0.1: 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Knee(**settings)
