"""Pretty units, for the places where people read; everywhere else edgewise keeps SI: bytes, seconds, plain counts."""

from __future__ import annotations

DASH = "–"  # an unknown value, which is not 0
MINUS = "−"

DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def format_bytes(value: float | None) -> str:
    """Return a size with three significant digits and an SI unit (1 kB is 1,000 bytes), or a dash.

    >>> format_bytes(1_088_000), format_bytes(999_960), format_bytes(512), format_bytes(None)
    ('1.09 MB', '1.00 MB', '512 B', '–')
    """
    return DASH if value is None else _scaled(value, [(factor, f"{prefix}B") for factor, prefix in DECIMAL])


def format_count(value: float | None) -> str:
    """Return a count with three significant digits and an SI prefix, or a dash.

    >>> format_count(31_000_000), format_count(272_474), format_count(64), format_count(0)
    ('31.0 M', '272 k', '64', '0')
    """
    return DASH if value is None else _scaled(value, list(DECIMAL))


def format_seconds(value: float | None) -> str:
    """Return a duration with three significant digits and its unit, or a dash; minutes and hours from 2 minutes on.

    >>> format_seconds(0.000482), format_seconds(61.24), format_seconds(185), format_seconds(7384)
    ('482 µs', '61.2 s', '3 min 5 s', '2 h 3 min')
    """
    if value is None:
        return DASH
    if value < 120:
        return _scaled(value, list(SECONDS)) if value else "0 s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def format_quantity(name: str, value: float | None) -> str:
    """Return an amount in the unit that its name carries: ``_bytes``, ``_s``, or else a count.

    >>> format_quantity("file_bytes", 120_000), format_quantity("latency_s", 0.002), format_quantity("macs", 2e7)
    ('120 kB', '2.00 ms', '20.0 M')
    """
    if name.endswith("_bytes"):
        return format_bytes(value)
    return format_seconds(value) if name.endswith("_s") else format_count(value)


def format_exact(name: str, amount: float) -> str:
    """Return an amount so exactly that it can be asked for: counts and bytes whole, times with four digits.

    >>> format_exact("file_bytes", 120_345.0), format_exact("latency_s", 0.00119), format_exact("macs", 2e7)
    ('120345 bytes', '1.19 ms', '20000000')
    """
    if name.endswith("_s"):
        return f"{amount * 1e3:.4g} ms"
    return f"{amount:.0f}{' bytes' if name.endswith('_bytes') else ''}" if amount >= 100 else f"{amount:.4g}"


def format_fraction(value: float | None) -> str:
    """Return a fraction as a percentage with two digits, or a dash.

    >>> format_fraction(0.9062), format_fraction(None)
    ('90.62%', '–')
    """
    return DASH if value is None else f"{value:.2%}"


def format_signed(value: float | None) -> str:
    """Return a number with its sign and two decimals, or a dash; what rounds to nothing has no sign.

    >>> format_signed(-0.304), format_signed(1.5), format_signed(-0.001)
    ('−0.30', '+1.50', '0.00')
    """
    if value is None:
        return DASH
    text = f"{abs(value):.2f}"
    sign = "" if float(text) == 0 else MINUS if value < 0 else "+"
    return sign + text


def format_ratio(value: float | None) -> str:
    """Return a ratio with two digits, three significant ones below 0.1, or a dash.

    >>> format_ratio(2.456), format_ratio(0.0413), format_ratio(None)
    ('2.46×', '0.041×', '–')
    """
    return DASH if value is None else f"{value:.2f}×" if abs(value) >= 0.0995 or not value else f"{value:.2g}×"


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    """Write a value in the largest unit in which it does not round below 1."""
    factor, unit = next((pair for pair in units if abs(value) >= pair[0] * 0.9995), units[-1])
    number = value / factor
    whole = factor == 1 and number == round(number)
    digits = 0 if whole or abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
    return f"{number:.{digits}f} {unit}".rstrip()
