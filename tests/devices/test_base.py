"""Statistics by hand, and the way to JSON and back."""

import json

import pytest

from edgewise.devices import Measurement


def measurement(*samples_s: float) -> Measurement:
    return Measurement(
        artifact="net.onnx",
        runtime="onnxruntime",
        version="1.2.3",
        threads=2,
        cpu="a processor",
        samples_s=samples_s,
        resident_bytes=4096,
        file_bytes=1000,
    )


def test_median_and_quartiles_by_hand() -> None:
    """Sorted: 1, 2, 3, 4, 10; quartiles 2 and 4 around the median 3."""
    found = measurement(4.0, 1.0, 10.0, 3.0, 2.0)
    assert found.latency_s == 3.0
    assert found.spread == pytest.approx(2 / 3)
    assert found.noisy


def test_an_even_number_of_samples() -> None:
    """Sorted: 1, 2, 4, 5; the median lies between, the quartiles a quarter of the way inside: 1.75 and 4.25."""
    found = measurement(1.0, 2.0, 4.0, 5.0)
    assert found.latency_s == 3.0
    assert found.spread == pytest.approx(2.5 / 3)


def test_one_sample_has_no_spread() -> None:
    assert (measurement(2.0).latency_s, measurement(2.0).spread, measurement(2.0).noisy) == (2.0, 0.0, False)


@pytest.mark.parametrize(("high", "noisy"), [(4.5, False), (4.6, True)])
def test_noisy_is_a_spread_over_a_quarter(high: float, noisy: bool) -> None:
    """Quartiles 3.5 and `high` around 4."""
    assert measurement(1.0, 3.5, 4.0, high, 9.0).noisy == noisy


def test_the_ratio_is_above_one_for_the_faster() -> None:
    slow, fast = measurement(4.0), measurement(1.0)
    assert (fast.ratio(slow), slow.ratio(fast), slow.ratio(slow)) == (4.0, 0.25, 1.0)


def test_outliers_do_not_move_the_latency() -> None:
    assert measurement(1.0, 1.0, 1.0, 1.0, 1000.0).latency_s == 1.0


def test_json_and_back() -> None:
    before = measurement(0.1, 0.2, 0.4)
    content = json.loads(json.dumps(before.to_dict()))
    assert content["samples_s"] == [0.1, 0.2, 0.4]
    assert (content["latency_s"], content["noisy"], content["spread"]) == (0.2, True, pytest.approx(0.75))
    assert Measurement.from_dict(content) == before
