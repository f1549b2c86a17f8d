"""The search finds what a score hides, keeps to its budget, and improves a real model's far needles."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scaler_wizard.calibrate import Calibration, sample
from scaler_wizard.context.frequencies import frequencies
from scaler_wizard.context.rope import extended_config, positions
from scaler_wizard.context.search import Candidate, Found, Score, grid, search
from scaler_wizard.data import encode, load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer
from scaler_wizard.phases import Search

BASE = json.loads((EMBEDDED / "config.json").read_text())
SPEC = Search(
    evaluations=7,
    minutes=5,
    window=512,
    windows=8,
    digits=4,
    short_length=128,
    short_windows=8,
    finalists=2,
    final_windows=8,
)


def bowl(candidate: Candidate) -> Score:
    """Lowest at beta_fast 8, beta_slow 2 and a temperature of 1.2, far from every candidate of the grid."""
    options = candidate.options
    if candidate.method not in ("searched", "yarn"):
        return Score(far=9, long=9, short=9, found=0)
    distance = (
        math.log(options.get("beta_fast", 32) / 8) ** 2
        + math.log(options.get("beta_slow", 1) / 2) ** 2
        + (10 * (options.get("temperature", options.get("attention_factor", 1.139)) - 1.2)) ** 2
    )
    return Score(far=distance, long=0, short=0, found=1)


def run(
    evaluations: int = 40, *, finalists: int = 0, seconds: float = 99, clock: Iterator[float] | None = None
) -> Found:
    return search(
        bowl,
        bowl,
        factor=4,
        evaluations=evaluations,
        finalists=finalists,
        seconds=seconds,
        clock=(lambda: 0.0) if clock is None else lambda: next(clock),
        rng=np.random.default_rng(0),
    )


def test_the_search_comes_close_to_a_hidden_minimum() -> None:
    found = run(60)
    known = min(bowl(candidate).total for candidate in grid())
    assert found.best.score.total < known / 4
    assert len(found.trials) == 60 and found.stopped_by == "evaluations"


def test_the_first_six_are_the_grid_and_the_same_seed_tries_the_same() -> None:
    found = run(20)
    assert tuple(trial.candidate for trial in found.trials[:6]) == grid()
    assert found == run(20)


def test_the_search_stops_when_its_time_is_over_and_keeps_the_best_so_far() -> None:
    clock = iter(float(second) for second in range(1000))
    found = run(40, seconds=20, clock=clock)
    assert found.stopped_by == "minutes" and 1 <= len(found.trials) < 12
    assert found.best.score.total == min(trial.score.total for trial in found.trials)
    assert len(run(40, seconds=0, clock=iter(map(float, range(99)))).trials) == 1


def test_a_scaled_base_is_searched_with_the_one_method_that_carries_it_on() -> None:
    assert {candidate.method for candidate in grid(scaled=True)} == {"searched"}
    scaled = extended_config(BASE, 256, "llama3")
    for candidate in grid(scaled=True):
        config = extended_config(scaled, 512, candidate.method, **candidate.options)  # type: ignore[arg-type]
        assert config["max_position_embeddings"] == 512


def test_finalists_are_scored_again_and_that_score_decides() -> None:
    found = run(20, finalists=3)
    final = [trial for trial in found.trials if trial.final]
    assert final[0].candidate.name == "yarn" and found.best in final
    assert 4 <= len(final) <= 5


def test_a_score_that_is_not_a_number_never_wins() -> None:
    assert Score(far=math.nan, long=0, short=0, found=0).total == math.inf


# -- a real model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    tokenizer = load_tokenizer(EMBEDDED)
    encoded = encode(load_corpus("kjv").calibration, tokenizer)
    model = load_model(EMBEDDED, dtype="float32")
    return Calibration(model, tokenizer, encoded, base=BASE, length=512, spec=SPEC)


def test_without_scaling_no_far_fact_is_found_and_with_the_search_nearly_all_are(calibration: Calibration) -> None:
    none = next(candidate for candidate in grid() if candidate.name == "none")
    found = search(
        calibration.score,
        calibration.decide,
        factor=4,
        evaluations=SPEC.evaluations,
        finalists=SPEC.finalists,
        seconds=120,
        clock=lambda: 0.0,
        rng=np.random.default_rng(0),
    )
    assert calibration.score(none).found == 0
    assert found.best.score.found >= 0.95
    plain = next(t for t in found.trials if t.final and t.candidate.name == "yarn")
    assert found.best.score.total <= plain.score.total


def test_a_loaded_model_is_given_other_frequencies_and_keeps_its_weights(calibration: Calibration) -> None:
    candidate = Candidate(name="x", method="searched", options={"beta_fast": 4.0, "temperature": 1.3})
    calibration.score(candidate)
    base = positions(extended_config(BASE, 512, "searched", **candidate.options))
    expected = frequencies(base.rope, width=base.width, window=base.window)
    rotary = calibration.model.model.rotary_emb
    np.testing.assert_allclose(rotary.inv_freq.numpy(), expected.inverse, rtol=2e-6)
    assert rotary.attention_scaling == pytest.approx(expected.scale)


def test_the_same_seed_draws_the_same_windows_and_another_draw_takes_others() -> None:
    tokenizer = load_tokenizer(EMBEDDED)
    encoded = encode(load_corpus("kjv").calibration[1:3], tokenizer)
    first, again, second = (
        sample(tokenizer, encoded, length=512, window=512, count=4, spec=SPEC, draw=draw) for draw in (0, 0, 1)
    )
    assert np.array_equal(first.ids, again.ids) and not np.array_equal(first.ids, second.ids)


def test_skipped_positions_reach_the_target_and_leave_halves_whole() -> None:
    tokenizer = load_tokenizer(EMBEDDED)
    encoded = encode(load_corpus("kjv").calibration[1:3], tokenizer)
    spec = SPEC.model_copy(update={"window": 128, "facts": 2})
    drawn = sample(tokenizer, encoded, length=1024, window=128, count=4, spec=spec)
    steps = np.diff(drawn.positions, axis=1)
    longest = max(question.ids.shape[1] for question in drawn.questions)
    assert drawn.ids.shape[1] + longest == 128 and (drawn.positions[:, -1] + longest == 1023).all()
    assert ((steps == 1).sum(axis=1) == steps.shape[1] - 1).all() and len(drawn.questions) == 2


def test_a_calibration_text_too_short_for_the_target_says_how_much_is_missing(tmp_path: Path) -> None:
    short = [np.arange(300, dtype=np.int32) % 64]
    with pytest.raises(ScalerError, match=r"300 tokens; a window of \d+ lacks"):
        sample(load_tokenizer(EMBEDDED), short, length=512, window=512, count=1, spec=SPEC)
