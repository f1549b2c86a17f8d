"""The tables of the report and the model card: measurements, lineage, gates; as Markdown or HTML, with text escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from scaler_wizard.comparison import Compared, Missing, compare
from scaler_wizard.gate import tokens
from scaler_wizard.grow import OPERATORS
from scaler_wizard.phases import Extend, Grow, Merge, Train
from scaler_wizard.story import Fusion, Passed, Story, Stretch
from scaler_wizard.wording import UNKNOWN, interval, number, size

Cells = tuple[str, ...]
LEARNS = {
    "new": "the new parameters",
    "lora": "low-rank adapters, merged afterwards",
    "norms": "norms and embeddings",
    "all": "all parameters",
}


@dataclass(frozen=True)
class Table:
    """Plain text in rows and columns."""

    head: Cells
    rows: tuple[Cells, ...]

    def markdown(self) -> str:
        """A GitHub table."""
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        return "\n".join(
            f"| {' | '.join(cell if line is lines[1] else plain(cell) for cell in line)} |" for line in lines
        )

    def html(self) -> str:
        """An HTML table; each cell repeats its column's name, so that a narrow screen can stack them."""
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.head)
        body = "".join(f"<tr>{self._row(row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _row(self, row: Cells) -> str:
        return "".join(
            f'<td data-column="{html.escape(name)}">{html.escape(cell)}</td>'
            for name, cell in zip(self.head, row, strict=True)
        )


def plain(text: str) -> str:
    """Text that Markdown shows as it is: nothing in it becomes a link, a tag, an entity or a column."""
    return re.sub(r"([\\`*_|<]|&(?=[#\w]+;)|\](?=[(\[:])|^[>#])", r"\\\1", " ".join(text.split()))


def measurements(story: Story) -> Table:
    """Base against grown model, then the grown model against the control."""
    rows = [
        (one.what, one.base, one.grown, one.change) if isinstance(one, Compared) else _missing(one)
        for one in compare(story)
    ]
    return Table(("figure", "base", "grown", "change [95 % interval]"), tuple(rows))


def _missing(one: Missing) -> Cells:
    return (one.what, UNKNOWN, UNKNOWN, one.why)


def control(story: Story) -> Table | None:
    """The grown model against the base that was trained on the same tokens; None where nothing was trained."""
    training = story.training
    if training is None:
        return None
    window = UNKNOWN if training.window is None else tokens(training.window)
    return Table(
        ("held-out loss, nats per token", "before training", "grown, trained", "control, trained", "gain over control"),
        (
            (
                f"windows of {window} tokens",
                number(training.before),
                number(training.after),
                number(training.control),
                interval(training.gain),
            ),
        ),
    )


def lineage(story: Story) -> Table:
    """Every phase that the grown model stands on; what its gate asked next is left out."""
    return Table(
        ("phase", "what was done", "result"),
        tuple((one.phase.slug, done(one), one.sentence.split("; ")[0]) for one in story.phases),
    )


def done(passed: Passed) -> str:
    """What a phase did, with its settings."""
    change = passed.phase.change
    match change:
        case Grow():
            return "; ".join(
                f"{OPERATORS[operator.op].title} ({_settings(operator.model_dump(exclude={'op'}))}; "
                f"{OPERATORS[operator.op].paper})"
                for operator in change.operators
            )
        case Extend():
            return f"window {tokens(change.length)}{_stretched(passed.stretch)}"
        case Train():
            learned = size(change.steps * change.windows_per_step * change.window)
            return (
                f"{LEARNS[change.train]} trained on {learned} tokens: {change.steps} steps of "
                f"{change.windows_per_step} x {tokens(change.window)}, learning rate {change.learning_rate:g}"
            )
        case Merge():
            return _merged(passed.fusion)
    return {"baseline": "measured the base", "export": "wrote the model, its card and this report"}[change.kind]


def _merged(fusion: Fusion | None) -> str:
    if fusion is None:
        return "merged"
    weights = ", ".join(f"{name} {value:g}" for name, value in fusion.weights.items())
    chosen = f"{weights}; chosen in {fusion.tries} tries" if fusion.tries else weights
    return f"{' and '.join(fusion.parents)} merged by {fusion.method}" + (f" ({chosen})" if chosen else "")


def _stretched(stretch: Stretch | None) -> str:
    if stretch is None:
        return ""
    options = {name: len(value) if isinstance(value, list) else value for name, value in stretch.options.items()}
    how = ", found by search" if stretch.searched else ""
    return f" by {stretch.method}{how}" + (f" ({_settings(options)})" if options else "")


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None)


def gates(story: Story) -> Table:
    """Every decision in order of time, those that were not kept too."""
    rows = []
    for one in story.timeline:
        reasons = f" Outside a limit: {'; '.join(one.reasons)}." if one.reasons else ""
        rows.append(
            (
                f"{one.time:%H:%M:%S}",
                one.phase,
                one.sentence + reasons,
                one.verdict or "-",
                one.answer or "nobody answered",
            )
        )
    return Table(("time (UTC)", "phase", "sentence", "verdict", "decided"), tuple(rows))
