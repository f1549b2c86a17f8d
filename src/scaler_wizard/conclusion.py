"""What a run gained, what it lost and what nobody measured: records in, sentences out.

A difference counts only where its 95 % interval excludes 0. Growth has paid only where the grown model beats the
control (the base, trained on the same tokens); everything else is "room added, not yet filled".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scaler_wizard.comparison import Compared, Missing, compare
from scaler_wizard.context.ladder import sweet_spot
from scaler_wizard.gate import tokens
from scaler_wizard.metrics import Interval
from scaler_wizard.phases import Extend
from scaler_wizard.story import Story, Training
from scaler_wizard.wording import interval, number, size

EMPTY = "Room added, not yet filled"


@dataclass(frozen=True)
class Conclusion:
    """The honest paragraph, in its parts; each part is a list of sentences without a full stop."""

    headline: str
    """What was made, and whether growth paid."""
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    unchanged: tuple[str, ...]
    """Differences that may be chance."""
    unmeasured: tuple[str, ...]

    def paragraph(self) -> str:
        """Everything as one paragraph."""
        parts = (("Gained", self.gained), ("Lost", self.lost), ("Within chance", self.unchanged))
        said = [f"{name}: {'; '.join(found) or 'nothing that was measured'}." for name, found in parts]
        return " ".join([self.headline, *said, f"Not measured: {'; '.join(self.unmeasured)}."])


def conclude(story: Story) -> Conclusion:
    """Judge a run by its own figures."""
    found = compare(story)
    known = [(one.gain, one.sentence) for one in found if isinstance(one, Compared)]
    lost = tuple(sentence for gain, sentence in known if gain.high < 0)
    return Conclusion(
        headline=" ".join([_made(story), *_climb(story), *_growth(story), *_merged(story), *_warning(lost)]),
        gained=tuple(sentence for gain, sentence in known if gain.low > 0),
        lost=lost,
        unchanged=tuple(sentence for gain, sentence in known if gain.low <= 0 <= gain.high),
        unmeasured=tuple(_unmeasured(story, found)),
    )


def _made(story: Story) -> str:
    base = story.plan.base
    changes = []
    if story.grew:
        changes.append(f"{size(base.parameters)} to {size(story.parameters)} parameters")
    if story.extended:
        changes.append(f"a window of {tokens(base.native_context)} to {tokens(story.window)} tokens")
    if not changes:
        return f"{base.name} kept its size and its window."
    return f"{base.name} went from {' and from '.join(changes)}."


def _climb(story: Story) -> Iterator[str]:
    """Which rung of the ladder was the best before anything was trained, where there was more than one."""
    stretched = [one.measurement for one in story.phases if isinstance(one.phase.change, Extend) and one.measurement]
    if story.ladder_ended is not None:
        yield story.ladder_ended
    elif story.baseline is not None and len(stretched) > 1:
        yield f"Before training: {sweet_spot(story.baseline, stretched, story.plan.gate).why}"


def _merged(story: Story) -> Iterator[str]:
    fusion = story.fusion
    if fusion is not None:
        others = " and ".join(name for name in fusion.parents if name != "grown")
        low, high = fusion.vibe.low, fusion.vibe.high
        yield f"It was merged with {others}. {fusion.sentence} (vibe {fusion.vibe.value:.2f}, {low:.2f} to {high:.2f})."


def _warning(lost: tuple[str, ...]) -> Iterator[str]:
    if lost:
        figures = "one figure is" if len(lost) == 1 else f"{len(lost)} figures are"
        yield f"But {figures} worse than before: look at what was lost."


# -- did growth pay? ---------------------------------------------------------------------------------------------------


def _growth(story: Story) -> Iterator[str]:
    if not story.grew:
        return
    training = story.training
    if training is None:
        yield f"{EMPTY}: nothing was trained, so the new parameters do nothing yet."
    elif training.gain is None:
        yield f"{EMPTY}, as far as anyone knows: no control was trained, so training alone may explain every change."
    else:
        yield _paid(training, training.gain)


def growth_paid(story: Story) -> bool | None:
    """Whether the grown model beats the control; None where that was not measured, or nothing grew."""
    gain = story.training.gain if story.training else None
    return None if gain is None or not story.grew else gain.low > 0


def _paid(training: Training, gain: Interval) -> str:
    figures = f"{number(training.after)} against {number(training.control)} nats per token on held-out text"
    difference = f"gain {interval(gain)}"
    if gain.low > 0:
        return f"Growth paid: after the same training tokens its loss is below the control's, {figures} ({difference})."
    if gain.high < 0:
        return f"{EMPTY}: the control, the base trained on the same tokens, is better, {figures} ({difference})."
    if not math.isfinite(gain.value):
        return f"{EMPTY}: the comparison with the control gave no finite number."
    return f"{EMPTY}: no better than the control, the base trained on the same tokens, {figures} ({difference})."


# -- what is not known -------------------------------------------------------------------------------------------------


def _unmeasured(story: Story, found: tuple[Compared | Missing, ...]) -> Iterator[str]:
    for one in found:
        if isinstance(one, Missing):
            yield f"{one.what} ({one.why})"
    if story.grew and story.training is not None and story.training.gain is None:
        yield "whether the new parameters help (no control)"
    yield f"any text but {story.corpus}: other subjects, languages, code, following instructions, safety"
    yield "free generation (every figure is the likelihood of given text)"
    yield f"other seeds (one run, seed {story.plan.seed})"
