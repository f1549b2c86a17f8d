"""How figures are said to people: counts, shares, losses, intervals, times; None is "not measured", NaN is named."""

from __future__ import annotations

import math

from scaler_wizard.metrics import Interval

UNKNOWN = "not measured"
MINUS = "\N{MINUS SIGN}"


def size(count: float) -> str:
    """A count as people say it: 820K, 1.64M, 175M."""
    for power, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= power:
            return f"{count / power:.3g}{letter}"
    return f"{count:.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A value: 3.024, "not measured", "not a number", "infinite"."""
    return _said(value, f".{digits}f")


def signed(value: float | None, digits: int = 3) -> str:
    """A change: +0.031, \N{MINUS SIGN}0.014."""
    return _said(value, f"+.{digits}f")


def share(value: float | None) -> str:
    """A share: 94 %."""
    return number(value) if value is None or not math.isfinite(value) else f"{_minus(f'{100 * value:.0f}')} %"


def points(value: float | None) -> str:
    """A change of a share, in percentage points: +6 points."""
    return signed(value) if value is None or not math.isfinite(value) else f"{_minus(f'{100 * value:+.0f}')} points"


def interval(found: Interval | None, digits: int = 3) -> str:
    """A change with its 95 % interval: +0.031 [+0.025, +0.038]."""
    if found is None:
        return UNKNOWN
    return f"{signed(found.value, digits)} [{signed(found.low, digits)}, {signed(found.high, digits)}]"


def share_interval(found: Interval | None) -> str:
    """A share with its 95 % interval: 94 % [80 %, 98 %]."""
    return UNKNOWN if found is None else f"{share(found.value)} [{share(found.low)}, {share(found.high)}]"


def points_interval(found: Interval | None) -> str:
    """A change of a share with its 95 % interval, in percentage points: +6 points [\N{MINUS SIGN}2, +14]."""
    if found is None:
        return UNKNOWN
    low, high = (points(end).removesuffix(" points") for end in (found.low, found.high))
    return f"{points(found.value)} [{low}, {high}]"


def duration(seconds: float | None) -> str:
    """A time: 45 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def gibibytes(amount: float | None) -> str:
    """Memory: 1.4 GiB."""
    return UNKNOWN if amount is None else f"{amount / 2**30:.1f} GiB"


def _said(value: float | None, form: str) -> str:
    if value is None:
        return UNKNOWN
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return _minus(format(value, form))


def _minus(text: str) -> str:
    """A real minus sign, and none before a zero."""
    return text.replace("-", MINUS if any(digit in text for digit in "123456789") else "")
