"""Units, and the verdict on what was measured."""

import re

import pytest

from edgewise.budget import BYTES, COUNTS, SECONDS, Limits, parse_quantity, verdict


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("120 KB", BYTES, 120_000),
        ("120KiB", BYTES, 122_880),
        ("1.5 mb", BYTES, 1_500_000),
        ("7 B", BYTES, 7),
        ("1 ms", SECONDS, 1e-3),
        (".5s", SECONDS, 0.5),
        ("250 us", SECONDS, 250e-6),
        ("20 M", COUNTS, 20e6),
        (100_000, COUNTS, 100_000),
        ("1e3 k", COUNTS, 1e6),
    ],
)
def test_quantities(text, units, value):
    assert parse_quantity(text, units, "x") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("120", "the unit is one of"),
        ("120 kilos", "the unit is one of"),
        ("fast", "write a number and a unit"),
        ("-3 KB", "write a number and a unit"),
        ("0 KB", "a limit is positive"),
        ("1 ms", "the unit is one of"),
    ],
)
def test_wrong_quantities_are_named(text, message):
    with pytest.raises(ValueError, match=f"size = '{text}': {message}"):
        parse_quantity(text, BYTES, "size")


def test_limits_need_a_limit():
    with pytest.raises(ValueError, match="at least one limit"):
        Limits()


def test_the_verdict_holds_each_limit_against_its_column():
    limits = Limits(size="1 KB", latency="2 ms", drop=0.5, macs="2 M")
    rows = verdict(limits, {"file_bytes": 1000, "latency_s": 0.0021, "drop_pt": -0.3, "macs": None}, {})
    assert {name: row["met"] for name, row in rows.items()} == {
        "size": True,
        "latency": False,
        "drop": True,
        "macs": False,  # not measured is not met
    }
    assert rows["size"] == {"limit": 1000.0, "value": 1000, "unit": "bytes", "met": True}


def test_a_share_is_of_the_dense_network_and_unknown_where_that_is() -> None:
    limits = Limits(size="50 %", latency="60%")
    rows = verdict(limits, {"file_bytes": 499, "latency_s": 0.5}, {"file_bytes": 1000, "latency_s": None})
    assert rows["size"] == {"limit": 500.0, "value": 499, "unit": "bytes", "met": True, "share": 0.5}
    assert rows["latency"] == {"limit": None, "value": 0.5, "unit": "s", "met": False, "share": 0.6}
    for wrong in ("-3 %", "x%", "5 ms%", "0%", "%"):
        with pytest.raises(ValueError, match=re.escape(f"size = {wrong!r}: a share of the")):
            Limits(size=wrong)
