"""Score rotary settings on calibration text that no report uses: far facts, the end of long text, short text.

Small models read whole windows. For large ones a window is short and its second half stands far away, by skipped
positions (as in PoSE, arXiv:2309.10400), so that one score costs seconds; the few best are read at the true length.
The facts have names and sentences of their own: neither trained on, which would make them too easy, nor reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from scaler_wizard.context.rope import extended_config
from scaler_wizard.context.search import Candidate, Score
from scaler_wizard.data import Tokens, windows
from scaler_wizard.evals.needle import TEMPLATE, encode, question_and_code
from scaler_wizard.evals.perplexity import logits_of, nll_of, token_nll
from scaler_wizard.facts import (
    ALL_TEMPLATES,
    CALIBRATION_NAMES,
    CALIBRATION_TEMPLATES,
    HELD_OUT_NAMES,
    make_facts,
    statement,
)
from scaler_wizard.phases import Search

FAR = 0.25
"""Part of a window, from its start, in which the facts stand."""
TOKENS_AT_ONCE = 8192
WORDINGS = range(len(ALL_TEMPLATES) - len(CALIBRATION_TEMPLATES), len(ALL_TEMPLATES))


@dataclass(frozen=True)
class Asked:
    """One question for each window, on top of what was read."""

    ids: Tokens
    """(n, q): question and answer, padded at the end."""
    answers: tuple[slice, ...]
    """Where the answer stands in each row."""


@dataclass(frozen=True)
class Sample:
    """Calibration windows, the same for every candidate."""

    ids: Tokens
    """(n, window): text with facts far back."""
    positions: Tokens
    """(n, window)."""
    questions: tuple[Asked, ...]
    """One for each fact of a window."""
    short: Tokens
    """(m, short)."""


class Calibration:
    """One loaded model, its calibration text, and the base's configuration."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encoded: Sequence[Tokens],
        *,
        base: Mapping[str, Any],
        length: int,
        spec: Search,
    ) -> None:
        self.model, self.base, self.length = model, base, length
        draw = partial(sample, tokenizer, encoded, length=length, spec=spec)
        self.first = draw(window=spec.window, count=spec.windows)
        self._draw_second = partial(draw, window=length, count=spec.final_windows, draw=1)
        self._second: Sample | None = None

    def score(self, candidate: Candidate) -> Score:
        """On the windows that every candidate is scored on."""
        return self.on(self.first, candidate)

    def decide(self, candidate: Candidate) -> Score:
        """On other windows, of the true length."""
        if self._second is None:
            self._second = self._draw_second()
        return self.on(self._second, candidate)

    def on(self, drawn: Sample, candidate: Candidate) -> Score:
        """On any windows."""
        options: dict[str, Any] = dict(candidate.options)
        retune(self.model, extended_config(self.base, self.length, candidate.method, **options))
        far, long, found = read(self.model, drawn)
        return Score(far=far, long=long, short=float(token_nll(self.model, drawn.short).mean()), found=found)


def retune(model: Any, config: Mapping[str, Any]) -> None:
    """Give a loaded model other rotary settings; its weights stay."""
    model.config.rope_parameters = dict(config["rope_parameters"])
    model.config.max_position_embeddings = config["max_position_embeddings"]
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config).to(model.device)


def sample(
    tokenizer: Any,
    encoded: Sequence[Tokens],
    *,
    length: int,
    window: int,
    count: int,
    spec: Search,
    draw: int = 0,
    held_out: bool = False,
) -> Sample:
    """Draw `count` windows that reach out to `length`, and short ones; another `draw` takes other text and facts.

    `held_out` takes the names and the sentences of reports, which a search must never see. Raises ScalerError where no
    document is long enough.
    """
    rng = np.random.default_rng([spec.seed, draw])
    facts = [_facts(tokenizer, spec, rng, held_out=held_out) for _ in range(count)]
    questions = [_asked([one.questions[number] for one in facts]) for number in range(spec.facts)]
    read = window - max(question.ids.shape[1] for question in questions)  # the answers end where the window ends
    rows = _some(windows(encoded, read), count, rng)
    return Sample(
        ids=np.stack([_hidden(row, one.told, rng) for row, one in zip(rows, facts, strict=True)]),
        positions=np.stack([_skipped(read, length - window + read, rng) for _ in rows]),
        questions=tuple(questions),
        short=_some(windows(encoded, spec.short_length), spec.short_windows, rng),
    )


def _some(rows: Tokens, count: int, rng: np.random.Generator) -> Tokens:
    """`count` of these rows, each as seldom as possible."""
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-count // len(rows)))])
    picked: Tokens = rows[order[:count]]
    return picked


@dataclass(frozen=True)
class _Facts:
    """What one window hides, and what is asked about it; all in tokens."""

    told: list[Tokens]
    questions: list[tuple[Tokens, Tokens]]
    """(question, answer) of each."""


def _facts(tokenizer: Any, spec: Search, rng: np.random.Generator, *, held_out: bool) -> _Facts:
    facts = make_facts(spec.facts, spec.digits, rng, names=HELD_OUT_NAMES if held_out else CALIBRATION_NAMES)
    wording = [TEMPLATE if held_out else int(rng.choice(WORDINGS)) for _ in facts]
    pairs = list(zip(facts, wording, strict=True))
    return _Facts(
        told=[encode(tokenizer, f" {statement(fact, way)}") for fact, way in pairs],
        questions=[question_and_code(tokenizer, fact, template=way) for fact, way in pairs],
    )


def _hidden(text: Tokens, told: list[Tokens], rng: np.random.Generator) -> Tokens:
    """The text, as long as before, with these sentences in its first quarter."""
    room = len(text) - sum(map(len, told))
    pieces, start = [], 0
    for place, sentence in zip(sorted(rng.uniform(0, FAR * room, len(told)).astype(int)), told, strict=True):
        pieces += [text[start:place], sentence]
        start = place
    return np.concatenate([*pieces, text[start:room]]).astype(np.int32)


def _asked(questions: list[tuple[Tokens, Tokens]]) -> Asked:
    rows = [np.concatenate(pair) for pair in questions]
    width = max(map(len, rows))
    return Asked(
        ids=np.stack([np.pad(row, (0, width - len(row))) for row in rows]).astype(np.int32),
        answers=tuple(slice(len(question), len(question) + len(code)) for question, code in questions),
    )


def _skipped(window: int, length: int, rng: np.random.Generator) -> Tokens:
    """Positions of a window whose second half ends at `length`; the first half starts a little after the beginning."""
    positions = np.arange(window, dtype=np.int32)
    if window < length:
        start = int(rng.integers(0, max(1, (length - window) // 8)))
        positions[: window // 2] += start
        positions[window // 2 :] += length - window
    return positions


@torch.inference_mode()
def read(model: Any, drawn: Sample) -> tuple[float, float, float]:
    """Mean loss of the answers, mean loss of the text in the second half, share of answers that are first choice."""
    far: list[float] = []
    long: list[float] = []
    found: list[bool] = []
    at_once = max(1, TOKENS_AT_ONCE // drawn.ids.shape[1])
    for at in range(0, len(drawn.ids), at_once):
        part = slice(at, at + at_once)
        ids, positions = _tensor(model, drawn.ids[part]), _tensor(model, drawn.positions[part])
        answer = model.model(input_ids=ids, position_ids=positions, use_cache=True)
        hidden, half = answer.last_hidden_state, ids.shape[1] // 2
        long += nll_of(model, hidden[:, half:-1].flatten(0, 1), ids[:, half + 1 :].flatten()).tolist()
        for question in drawn.questions:
            asked = _tensor(model, question.ids[part])
            after = positions[:, -1:] + 1 + torch.arange(asked.shape[1], device=asked.device)
            told = model.model(
                input_ids=asked, position_ids=after, past_key_values=answer.past_key_values
            ).last_hidden_state
            answer.past_key_values.crop(-asked.shape[1])  # transformers 5: a negative number is how many to drop
            for row, place in enumerate(question.answers[part]):
                logits = logits_of(model, told[row, place.start - 1 : place.stop - 1])
                far.append(float(torch.nn.functional.cross_entropy(logits, asked[row, place])))
                found.append(bool((logits.argmax(-1) == asked[row, place]).all()))
    return float(np.mean(far)), float(np.mean(long)), float(np.mean(found))


def _tensor(model: Any, ids: Tokens) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(model.device)
