"""The ladder starts where the model was measured to read, heals the rungs that need it, and ends at the sweet spot."""

from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.architecture import read_architecture
from scaler_wizard.conclusion import conclude
from scaler_wizard.context import native
from scaler_wizard.context.ladder import shortened
from scaler_wizard.context.native import NativeWindow, recall, remember
from scaler_wizard.events import Done
from scaler_wizard.extend import extend
from scaler_wizard.gate import Change, judge
from scaler_wizard.models import EMBEDDED
from scaler_wizard.phases import Extend, Train
from scaler_wizard.recipe import GateLimits
from scaler_wizard.record import to_json
from scaler_wizard.story import tell
from test_extend import plan, task
from told_runs import BASE, GROWN, PROOF, make_run

BAD = GROWN.model_copy(
    update={"short_nll": 3.5, "short_nll_by_window": tuple(x + 0.5 for x in BASE.short_nll_by_window)}
)
RUNG = GROWN.model_copy(update={"target_length": 256})
HEAL = {"tokens": 16384, "control": False}


def says(**phases: Any) -> dict[str, list[str]]:
    """Scripts of phases by name, with underscores for dashes."""
    spoken = {"baseline": BASE, **phases}
    return {
        name.replace("_", "-"): [to_json(Done(measurement=one, evidence={"proof": PROOF}))]
        for name, one in spoken.items()
    }


def kept(runs: Path, spoken: dict[str, list[str]], **extend: Any) -> tuple[list[str], str, str]:
    """(phases that were kept, notes, headline) of a whole run from 128 to 512 tokens."""
    run = make_run(runs, spoken, parameters=None, heal=HEAL, extend=extend)
    story = tell(run.folder)
    return [one.phase.name for one in story.phases], "\n".join(story.notes), conclude(story).headline


def test_a_rung_outside_a_limit_is_healed_before_the_next_one(tmp_path: Path) -> None:
    slightly = RUNG.model_copy(
        update={"short_nll": 3.1, "short_nll_by_window": tuple(x + 0.1 for x in BASE.short_nll_by_window)}
    )
    spoken = says(extend_256=slightly, heal_256=RUNG, extend_512=GROWN, heal=GROWN)
    phases, notes, _ = kept(tmp_path, spoken, heal_rungs=True)
    assert phases == ["baseline", "extend-256", "heal-256", "extend-512", "heal", "export"]
    assert "training at 256 where needed: needed, since loss on short text rose by 0.100" in notes


def test_a_good_rung_is_not_healed_a_bad_one_ends_the_ladder_and_the_report_says_which_and_why(tmp_path: Path) -> None:
    spoken = says(extend_256=RUNG, extend_512=BAD, heal=RUNG)
    phases, notes, headline = kept(tmp_path, spoken, heal_rungs=True, stop=True)
    assert phases == ["baseline", "extend-256", "heal", "export"]
    assert "training at 256 where needed: left out, since the window of 256 is within every limit without it" in notes
    why = "The ladder ends at 256: at 512 loss on short text rose by 0.500 nats per token; the limit is 0.15."
    assert why in headline and "128 to 256 tokens" in headline


@pytest.mark.slow
def test_without_that_wish_a_person_is_asked_whether_to_keep_the_rung(tmp_path: Path) -> None:
    phases, _, headline = kept(tmp_path, says(extend_256=RUNG, extend_512=BAD, heal=GROWN))
    assert "extend-512" in phases and "Stop at 256: at 512 loss on short text is 0.500" in headline


def test_a_ladder_that_ended_trains_as_many_tokens_no_farther_away() -> None:
    made = plan(context="4x", heal={"window": 512, "tokens": 65536})
    heal = next(phase for phase in made.phases if phase.name == "heal")
    short = shortened(heal, 256)
    assert isinstance(heal.change, Train) and isinstance(short.change, Train) and short.measure is not None
    assert short.change.window == 256
    assert short.change.window * short.change.windows_per_step == heal.change.window * heal.change.windows_per_step
    assert short.measure.length == 256 and short.measure.needle_lengths == (128, 256)
    assert shortened(heal, 512) == heal


@pytest.fixture
def measured_96(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model as if it had been measured to read 96 of its 128 tokens."""
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path / "cache")
    remember(read_architecture(EMBEDDED), NativeWindow(claimed=128, measured=96))


@pytest.mark.usefixtures("measured_96")
def test_the_ladder_starts_from_what_was_measured_and_the_plan_shows_both(tmp_path: Path) -> None:
    made = plan(context=384, extend={"search": False})
    assert [phase.change.length for phase in made.phases if isinstance(phase.change, Extend)] == [192, 384]
    assert "the ladder starts at 96: the configuration claims 128, 96 were measured" in made.notes
    config, _ = extend(task(made, "extend-192", tmp_path), lambda share, doing: None)
    assert config["rope_parameters"]["factor"] == 2.0
    assert config["rope_parameters"]["original_max_position_embeddings"] == 96


def test_without_a_measurement_the_claim_counts_and_the_plan_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    assert recall(read_architecture(EMBEDDED)) is None
    assert any("starts at 128, as the configuration claims" in note for note in plan(context="2x").notes)


def test_a_base_that_reads_less_than_the_ladder_starts_from_waits_for_a_person() -> None:
    change = Change("baseline", "baseline", exact=False, next=None)
    asked = {"native": {"claimed": 8192, "measured": 4096}}
    verdict = judge(change, baseline=None, before=None, after=BASE, evidence=asked, limits=GateLimits())
    assert verdict.action == "ask" and "reads 4K well, not the 8K" in verdict.reasons[0]
    fine = {"native": {"claimed": 8192, "measured": 8192}}
    assert judge(change, baseline=None, before=None, after=BASE, evidence=fine, limits=GateLimits()).action == "pass"
