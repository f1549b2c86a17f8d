"""Compare ways to see a rising perplexity, on recorded trainings: `python benchmarks/breakers.py`.

Peers: the difference of the window's ends, and a least-squares line. A curve is stopped where the rise per evaluation,
as a share of the window's first value, is above the limit. Healthy and spiking trainings must not be stopped; a delay
counts evaluations from the first bad step to the stop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaler_wizard.breaker import LEAST_POINTS, relative_slope
from scaler_wizard.recipe import Breaker

CURVES = Path(__file__).parents[1] / "tests" / "curves.json"
LIMIT, WINDOW = Breaker().slope, Breaker().window
Slope = Callable[[Sequence[float]], float | None]


def ends(values: Sequence[float]) -> float:
    """Difference of the ends."""
    return (values[-1] - values[0]) / (len(values) - 1) / values[0]


def least_squares(values: Sequence[float]) -> float:
    """Slope of the least-squares line."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    top = sum((at - middle) * (value - mean) for at, value in enumerate(values))
    return top / sum((at - middle) ** 2 for at in range(len(values))) / values[0]


WAYS: dict[str, tuple[Slope, int]] = {
    "ends, from 3 points": (ends, 3),
    "ends, from 5 points": (ends, 5),
    "least squares, from 5 points": (least_squares, 5),
    f"median of pairs (ours), from {LEAST_POINTS} points": (relative_slope, LEAST_POINTS),
}


def stop(curve: dict[str, Any], slope: Slope, least: int) -> int | None:
    """At which evaluation the curve is stopped."""
    values = [math.exp(min(nll, 700.0)) for nll in curve["nll"]]
    for at in range(least - 1, len(values)):
        rise = slope(values[max(0, at - WINDOW + 1) : at + 1])
        if rise is not None and rise > LIMIT:
            return at
    return None


def row(curves: list[dict[str, Any]], slope: Slope, least: int) -> tuple[int, dict[str, tuple[int, float | None]]]:
    """False stops, and for each bad kind how many are found and after how many evaluations on average."""
    false = sum(stop(c, slope, least) is not None for c in curves if c["kind"] in ("healthy", "spiking"))
    found: dict[str, tuple[int, float | None]] = {}
    for kind in ("diverging", "rotting"):
        delays = [at - c["onset"] for c in curves if c["kind"] == kind and (at := stop(c, slope, least)) is not None]
        found[kind] = (len(delays), sum(delays) / len(delays) if delays else None)
    return false, found


def main() -> None:
    """Print the table."""
    curves = json.loads(CURVES.read_text(encoding="utf-8"))
    counts = {kind: sum(c["kind"] == kind for c in curves) for kind in ("healthy", "spiking", "diverging", "rotting")}
    print(f"limit {LIMIT} per evaluation, window {WINDOW}, curves: {counts}\n")
    print("| slope by | false stops | diverging found | after | rotting found | after |")
    print("|---|---|---|---|---|---|")
    for name, (slope, least) in WAYS.items():
        false, found = row(curves, slope, least)
        cells = [
            f"{n} of {counts[kind]} | {'-' if delay is None else f'{delay:.1f}'}" for kind, (n, delay) in found.items()
        ]
        print(f"| {name} | {false} of {counts['healthy'] + counts['spiking']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
