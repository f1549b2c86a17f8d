from __future__ import annotations

from dataclasses import replace

import pytest

from scaler_wizard.conclusion import EMPTY, conclude, growth_paid
from scaler_wizard.phases import Grow
from scaler_wizard.run import Run
from scaler_wizard.story import Story, tell
from told_runs import BASE, GROWN, measured, told, with_final, with_training


def only(sentences: tuple[str, ...], word: str) -> str:
    found = [sentence for sentence in sentences if word in sentence]
    assert len(found) == 1, sentences
    return found[0]


def test_growth_that_beats_its_control_has_paid(story: Story) -> None:
    found = conclude(story)
    assert growth_paid(story) is True
    assert "820K to 1.64M parameters" in found.headline and "128 to 512 tokens" in found.headline
    assert "Growth paid" in found.headline and "+0.050 [+0.030, +0.070]" in found.headline
    assert EMPTY not in found.headline


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.01, -0.01, 0.03), "no better than the control"),
        ((0.01, 0.0, 0.02), "no better than the control"),
        ((-0.05, -0.07, -0.03), "is better"),
        ((float("nan"),) * 3, "no finite number"),
    ],
)
def test_growth_that_does_not_beat_its_control_is_room_that_is_not_filled(
    story: Story, gain: tuple[float, float, float], words: str
) -> None:
    told_so = with_training(story, told(gain))
    assert growth_paid(told_so) is False
    assert EMPTY in conclude(told_so).headline and words in conclude(told_so).headline


def test_the_best_rung_before_training_is_named_with_its_reason(story: Story) -> None:
    assert "Before training: 512 is within every limit" in conclude(story).headline


def test_growth_that_was_not_trained_is_room_that_is_not_filled(story: Story) -> None:
    found = conclude(with_training(story, None))
    assert f"{EMPTY}: nothing was trained" in found.headline
    assert growth_paid(with_training(story, None)) is None


def test_without_a_control_nobody_knows_whether_growth_paid(story: Story) -> None:
    found = conclude(with_training(story, told(None)))
    assert EMPTY in found.headline and "no control was trained" in found.headline
    assert only(found.unmeasured, "no control")


def test_a_run_that_only_trains_makes_no_claim_about_growth(story: Story) -> None:
    kept = tuple(one for one in story.phases if not isinstance(one.phase.change, Grow))
    assert "rowth" not in conclude(replace(story, phases=kept)).headline
    assert EMPTY not in conclude(replace(story, phases=kept)).headline


def test_a_long_window_that_beats_truncation_is_a_gain(story: Story) -> None:
    sentence = only(conclude(story).gained, "than reading the last 128 alone")
    assert "0.070 lower" in sentence and "gain +0.070" in sentence


def test_a_long_window_that_truncation_beats_is_a_loss(story: Story) -> None:
    found = conclude(with_final(story, measured(short=2.9, long=3.0, truncated=2.95)))
    assert "0.050 higher" in only(found.lost, "than reading the last 128 alone")


def test_a_window_that_was_only_compared_with_the_base_says_so(story: Story) -> None:
    found = conclude(with_final(story, GROWN.model_copy(update={"truncation_by": "base"})))
    assert only(found.gained, "than the base's, reading the last 128 alone")


def test_truncation_that_was_not_read_is_not_measured(story: Story) -> None:
    final = GROWN.model_copy(update={"context_gain": None, "truncation_by": None, "truncated_blocks": ()})
    found = conclude(with_final(story, final))
    assert only(found.unmeasured, "not read truncated")
    assert not any("the last 128 alone" in one for one in (*found.gained, *found.lost, *found.unchanged))


def test_a_probe_that_fell_far_is_a_loss_and_one_that_fell_a_little_may_be_chance(story: Story) -> None:
    far = conclude(with_final(story, measured(short=2.9, long=2.88, truncated=2.95, correct=50)))
    assert "70% → 42%" in only(far.lost, "multiple-choice")
    little = conclude(with_final(story, measured(short=2.9, long=2.88, truncated=2.95, correct=80)))
    assert only(little.unchanged, "multiple-choice")


def test_knowledge_that_was_not_asked_for_is_not_measured(story: Story) -> None:
    found = conclude(with_final(story, measured(short=2.9, long=2.88, truncated=2.95)))
    assert only(found.unmeasured, "knowledge")


def test_short_text_that_got_worse_is_a_loss(story: Story) -> None:
    found = conclude(with_final(story, measured(short=3.05, long=2.88, truncated=2.95)))
    lost = only(found.lost, "short text")
    assert "3.000 → 3.050" in lost and "(+0.050 [" in lost  # the change is grown less base
    assert "one figure is worse" in found.headline and "worse" not in conclude(story).headline


def test_a_rise_whose_interval_reaches_zero_is_within_chance(story: Story) -> None:
    base = BASE.model_copy(update={"short_nll_by_window": (3.0, 3.0, 3.0, 3.0), "short_nll": 3.0})
    grown = GROWN.model_copy(update={"short_nll_by_window": (3.0, 3.0, 3.0, 3.4), "short_nll": 3.1})
    phases = (replace(story.phases[0], measurement=base), *story.phases[1:])
    found = conclude(with_final(replace(story, phases=phases), grown))
    assert only(found.unchanged, "short text") and not any("short text" in one for one in found.lost)


def test_one_short_window_without_a_finite_loss_leaves_short_text_unmeasured(story: Story) -> None:
    windows = (*GROWN.short_nll_by_window[:-1], float("nan"))
    found = conclude(with_final(story, GROWN.model_copy(update={"short_nll_by_window": windows})))
    assert only(found.unmeasured, "loss on short text")


def test_facts_that_are_found_again_are_a_gain(story: Story) -> None:
    found = conclude(story)
    assert "0/32 → 32/32" in only(found.gained, "needles found in 512")
    assert "32/32 → 32/32" in only(found.unchanged, "needles found in 128")


def test_losses_that_are_no_numbers_are_never_a_gain(story: Story) -> None:
    broken = measured(short=float("nan"), long=float("inf"), truncated=2.95)
    found = conclude(with_final(story, broken))
    assert only(found.unmeasured, "loss on short text")
    assert not any("loss" in one for one in (*found.gained, *found.unchanged))


def test_nothing_is_concluded_where_nothing_was_measured(story: Story) -> None:
    phases = tuple(replace(one, measurement=None, training=None) for one in story.phases)
    found = conclude(replace(story, phases=phases))
    assert not found.gained and not found.lost and not found.unchanged
    assert only(found.unmeasured, "any quality")


def test_measurements_at_other_places_are_not_compared(story: Story) -> None:
    shorter = BASE.model_copy(update={"target_length": 256})
    phases = (replace(story.phases[0], measurement=shorter), *story.phases[1:])
    found = conclude(replace(story, phases=phases))
    assert only(found.unmeasured, "same places")


def test_the_paragraph_says_everything(story: Story) -> None:
    found = conclude(story)
    text = found.paragraph()
    for sentence in (found.headline, *found.gained, *found.unchanged, *found.unmeasured):
        assert sentence in text
    assert "Lost: nothing that was measured." in text


def test_a_run_that_was_rolled_back_is_told_as_far_as_it_stands(own_run: Run) -> None:
    own_run.rollback("001-grow", who="Ada")
    found = tell(own_run.folder)
    assert [one.phase.name for one in found.phases] == ["baseline", "grow"]
    assert not found.extended and found.curves == {}
    assert f"{EMPTY}: nothing was trained" in conclude(found).headline
    assert found.timeline[-1].sentence == "Rolled back to 001-grow."
