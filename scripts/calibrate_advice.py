"""How good estimates, bands and advice are, on the shipped runs: writes docs/reference/advice.md.

python scripts/calibrate_advice.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaler_wizard.experience import SHIPPED, Experience, load
from scaler_wizard.learn import BAND, as_yaml, calibrate, remember, rules, run_features

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "advice.md"
HEAD = """# How good estimates and advice are

Written by `scripts/calibrate_advice.py` from the runs in `experience.jsonl`, which `scripts/collect_runs.py` made on
one thread. Time is processor time of the worker; memory is the largest of looks about once a second. All runs are
small: nothing here says how well a model of billions is estimated. Two constants of the estimate, the start of a worker
and the share of the probed rate that bfloat16 reaches, were set after looking at these runs; the bands were not.
"""


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is fresh."""
    text = page(load(SHIPPED))
    if "--check" in arguments:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("the page is fresh" if fresh else "run scripts/calibrate_advice.py")
        return 0 if fresh else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    return 0


def page(runs: Sequence[Experience]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *estimates(runs), *bands(runs), *choice(runs), *learnt(runs), ""])


def estimates(runs: Sequence[Experience]) -> Iterator[str]:
    """The plan's own estimates against what was measured."""
    yield "## Estimates, a run each\n"
    yield "| run | base | growth | window | trains | MiB measured / estimated | s measured / estimated |"
    yield "|---|---|---|---|---|---|---|"
    inside_memory = inside_time = 0
    for one in runs:
        peak, expected = (max(getattr(p, key) or 0 for p in one.phases) for key in ("peak_bytes", "estimated_bytes"))
        took, planned = (sum(getattr(p, key) or 0 for p in one.phases) for key in ("cpu_seconds", "estimated_seconds"))
        memory, time = expected / peak - 1, planned / took - 1
        inside_memory += abs(memory) <= 0.15
        inside_time += abs(time) <= 0.30
        sizes = f"| {one.run} | {one.base} | {one.growth:.2g}x | {one.stretch:g}x | {one.train} "
        yield f"{sizes}| {peak >> 20} / {expected >> 20} ({memory:+.0%}) | {took:.0f} / {planned:.0f} ({time:+.0%}) |"
    yield f"\nOf {len(runs)} runs memory was within 15 % in {inside_memory}, time within 30 % in {inside_time}.\n"


def bands(runs: Sequence[Experience]) -> Iterator[str]:
    """Coverage on runs that no part of the fit had seen."""
    found = calibrate(runs)
    yield "## Bands of `scaler learn`\n"
    yield f"Each fifth of the runs was left out in turn; of what was measured there, inside the {BAND:.0%} band were:\n"
    yield f"- time of a phase: {found.seconds_inside:.0%}"
    yield f"- memory of a phase: {found.bytes_inside:.0%}"
    yield f"- change of the loss on short text: {found.loss_inside:.0%}\n"


def choice(runs: Sequence[Experience]) -> Iterator[str]:
    """The run whose loss is expected to be lowest, by the others, against the one that is made like `balanced`."""
    own = [one for one in runs if one.base == "embedded" and one.short_change is not None and one.train != "none"]
    like = [one for one in own if abs(one.growth - 1.3) < 0.05 and one.stretch == 2 and one.learning_rate == 2e-3]
    both = [one for one in own if one.growth > 1.05 and one.stretch > 1]
    chosen = min(both, key=lambda one: _expected(one, runs))
    fixed = min(like, key=lambda one: abs(one.tokens - 131072))
    yield "## Advice against the fixed recipe\n"
    yield (
        f"Of the {len(both)} runs that grew and got a longer window, each expected from all others, `{chosen.run}` "
        f"is chosen: its loss on short text changed by {chosen.short_change:+.3f} nats per token. "
        f"That of `{fixed.run}`, made like `balanced`, changed by {fixed.short_change:+.3f}.\n"
    )


def _expected(one: Experience, runs: Sequence[Experience]) -> float:
    known = remember([other for other in runs if other.run != one.run])
    band = known.short_change(run_features(one), one.parameters) if known is not None else None
    return float("inf") if band is None else band.middle


def learnt(runs: Sequence[Experience]) -> Iterator[str]:
    """The rules, as `scaler learn` prints them."""
    yield "## Rules\n"
    yield f"```yaml\n{as_yaml(rules(runs))}```"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
