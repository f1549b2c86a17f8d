"""The measured window, the sliding loss, the ladder and its sweet spot."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaler_wizard.architecture import read_architecture
from scaler_wizard.calibrate import retune
from scaler_wizard.context import native
from scaler_wizard.context.ladder import ladder, sweet_spot
from scaler_wizard.context.rope import extended_config
from scaler_wizard.data import encode, load_corpus, windows
from scaler_wizard.errors import ScalerError
from scaler_wizard.evals import perplexity, window
from scaler_wizard.evals.perplexity import sliding_nll, token_nll
from scaler_wizard.evals.ruler import RulerScore
from scaler_wizard.evals.window import Reach, measured_window
from scaler_wizard.evaluate import effective
from scaler_wizard.metrics import Interval, Measurement, NeedleCell
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer
from scaler_wizard.recipe import GateLimits

MODEL = load_model(EMBEDDED, dtype="float32")
TEXT = windows(encode(load_corpus("kjv").heldout, load_tokenizer(EMBEDDED)), 384, limit=8)


def measurement(length: int, *, gain: float = 0.1, short: float = 3.0, found: int = 10) -> Measurement:
    cells = [NeedleCell(length=n, depth=0.1, found=f, asked=10, nll=0.1) for n, f in ((128, 10), (length, found))]
    return Measurement(
        corpus="kjv",
        native_length=128,
        target_length=length,
        short_nll=short,
        short_nll_by_window=(short,),
        context_gain=Interval(value=gain, low=gain - 0.01, high=gain + 0.01),
        needles=tuple(cells[: 1 if length == 128 else 2]),
        seconds=1.0,
    )


def test_a_sliding_window_scores_each_token_with_the_text_just_before_it() -> None:
    found = sliding_nll(MODEL, TEXT[:2], 96, 32)
    assert found.shape == (2, 383)
    np.testing.assert_allclose(found[:, :95], token_nll(MODEL, TEXT[:2, :96]), atol=1e-5)
    np.testing.assert_allclose(found[:, 127:159], token_nll(MODEL, TEXT[:2, 64:160])[:, -32:], atol=1e-5)
    np.testing.assert_allclose(found[:, -1:], token_nll(MODEL, TEXT[:2, -96:])[:, -1:], atol=1e-5)


def test_dynamic_scaling_is_scored_in_one_pass_and_refuses_questions_along_it(monkeypatch: pytest.MonkeyPatch) -> None:
    folder_config = json.loads((EMBEDDED / "config.json").read_text())
    model = load_model(EMBEDDED, dtype="float32")
    retune(model, extended_config(folder_config, 384, "dynamic"))
    whole = token_nll(model, TEXT[:1])
    monkeypatch.setattr(perplexity, "CHUNK", 100)
    np.testing.assert_allclose(token_nll(model, TEXT[:1]), whole, atol=1e-5)
    with pytest.raises(ScalerError, match="follow the length"):
        token_nll(model, TEXT[:1], visit=lambda read, cache: None)


def test_the_losses_of_the_embedded_model_turn_up_beyond_its_window_of_128() -> None:
    found = measured_window(MODEL, TEXT, claimed=128, bucket=32)
    assert found.tokens is not None and 96 <= found.tokens <= 224 and not found.open
    assert found.reaches[-1].worse > 0.3


def test_a_claim_that_is_too_long_is_seen() -> None:
    found = measured_window(MODEL, TEXT, claimed=384, bucket=32)
    assert found.tokens is None or found.tokens < 384


def test_one_harmed_stretch_with_a_good_one_after_it_is_taken_for_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    stretches = {64: 0.5, 96: -0.1, 128: 0.5, 160: 0.5}
    monkeypatch.setattr(
        window, "_reach", lambda whole, sliding, start, end, seed: Reach(start, end, *[stretches[start]] * 2)
    )
    monkeypatch.setattr(window, "sliding_nll", lambda *given: np.zeros((8, 191)))
    monkeypatch.setattr(window, "token_nll", lambda *given: np.zeros((8, 191)))
    assert measured_window(MODEL, TEXT[:, :192], claimed=128, bucket=32).tokens == 128


def test_what_was_measured_is_remembered_for_the_next_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    base = read_architecture(EMBEDDED)
    found = window.measure_native(base, MODEL, data="kjv", native=128)
    assert found.claimed == 128 == found.measured
    assert native.recall(base) == found


def test_a_damaged_memory_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    base = read_architecture(EMBEDDED)
    native.remember(base, native.NativeWindow(claimed=128, measured=96))
    (file,) = (tmp_path / "native-windows").iterdir()
    file.write_text('{"claimed": 128, "measured": "many"')
    assert native.recall(base) is None


def test_the_effective_length_is_where_the_tasks_mean_falls_below_85_per_cent() -> None:
    def score(length: int, value: float) -> RulerScore:
        return RulerScore(task="vt", length=length, score=Interval(value=value, low=0, high=1), answers=8)

    assert effective([score(1024, 0.8), score(2048, 0.7), score(4096, 0.5)]) == 2048
    assert effective([score(1024, 0.8)]) is None


def test_text_within_the_window_leaves_it_open() -> None:
    assert measured_window(MODEL, TEXT[:, :128], claimed=128, bucket=32).open


@pytest.mark.parametrize(("native", "target", "rungs"), [(128, 512, (256, 512)), (8192, 24576, (16384, 24576))])
def test_no_rung_is_more_than_twice_the_one_before(native: int, target: int, rungs: tuple[int, ...]) -> None:
    assert ladder(native, target) == rungs


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        ({"gain": -0.2}, "0.200 nats per token worse than truncation"),
        ({"short": 3.2}, "short text"),
        ({"found": 3}, "30%"),
    ],
)
def test_the_climb_stops_below_the_first_rung_outside_a_limit_and_says_why(spoiled: dict[str, float], why: str) -> None:
    rungs = [measurement(256), measurement(512, **spoiled), measurement(1024)]
    found = sweet_spot(measurement(128), rungs, GateLimits())
    assert found.window == 256 and "Stop at 256: at 512" in found.why and why in found.why


def test_without_a_bad_rung_the_longest_is_kept() -> None:
    assert sweet_spot(measurement(128), [measurement(512), measurement(256)], GateLimits()).window == 512
