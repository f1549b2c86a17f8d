"""Recommendations on simulated machines: what is recommended runs by the estimate, and what is given up is said."""

import itertools
import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from commands import called, scaler
from machines import machine
from scaler_wizard.advise import Case, Leaning, Recommendation, advised, recommend
from scaler_wizard.architecture import Architecture, read_architecture
from scaler_wizard.catalogue import find, unfetched
from scaler_wizard.errors import ScalerError, Waiting
from scaler_wizard.hardware import Hardware
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.recipe import Recipe
from scaler_wizard.wish_reader import WishReader
from scaler_wizard.wishes import understand

SHAPES = (
    "SmolLM2-135M gemma-3-270m SmolLM2-360M Qwen2.5-0.5B TinyLlama-1.1B-Chat-v1.0 Llama-3.2-1B SmolLM2-1.7B gemma-2-2b "
    "Phi-3-mini-4k-instruct Qwen3-4B Mistral-7B-v0.3 OLMo-2-1124-13B"
).split()
WISHES = (
    "bigger and longer",
    "the longest window you can give me",
    "as many parameters as possible",
    "long contracts on my laptop",
    "a mixture of experts",
    "better reasoning, must not lose quality",
    "more parameters, no training",
    "just a quick look",
)
RAM, VRAM = (2, 4, 8, 16, 32, 64, 128), (0, 4, 8, 16, 24, 48, 80)
EVERY = tuple(itertools.product(SHAPES, WISHES, RAM, VRAM))


@cache
def unfetched_once(shape: str) -> Architecture:
    entry = find(shape)
    assert entry is not None
    return unfetched(entry)


def case(shape: str, hardware: Hardware) -> Case:
    entry = find(shape)
    assert entry is not None
    base = unfetched_once(shape)
    return Case(Source(base.folder, entry.name, entry.licence, "catalogue"), base, hardware)


def fits(found: Recommendation, hardware: Hardware) -> bool:
    """By the estimate of every phase, on its own: at most nine tenths of the memory, and no more than the free disk."""
    assert found.plan is not None
    phases = [phase.estimate for phase in found.plan.phases]
    limit = 0.9 * (hardware.vram_bytes or hardware.ram_bytes)
    disk = sum(estimate.disk_bytes or 0 for estimate in phases)
    return all((estimate.memory_bytes or 0) <= limit for estimate in phases) and disk <= hardware.disk_free_bytes


def check(cases: tuple[tuple[str, str, int, int], ...]) -> tuple[int, int]:
    """How many were recommended and how many refused; every recommendation must run."""
    recommended = refused = 0
    for shape, wish, ram, vram in cases:
        hardware = machine(ram, vram)
        try:
            found = recommend(understand(wish), case(shape, hardware))
        except ScalerError as refusal:
            assert "fits" in refusal.wrong and "smaller model" in refusal.cure
            refused += 1
            continue
        assert fits(found, hardware), (shape, wish, ram, vram)
        recommended += 1
    return recommended, refused


def test_no_recommendation_is_one_that_the_estimate_refuses() -> None:
    recommended, refused = check(EVERY[::197])
    assert recommended > 8 and refused > 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_recommendation_on_any_machine_is_one_that_the_estimate_refuses() -> None:
    recommended, refused = check(EVERY)
    print(f"{recommended} recommended, {refused} refused, of {len(EVERY)}")  # noqa: T201
    assert recommended > 1000


def test_where_everything_fits_nothing_is_given_up() -> None:
    found = recommend(understand("bigger and longer"), case("SmolLM2-135M", machine(64)))
    assert (found.data["parameters"], found.data["context"]) == ("1.3x", "2x")
    assert not any("instead" in reason for reason in found.reasons)


def test_what_is_given_up_is_needed_and_said() -> None:
    small, large = (recommend(understand("longest window"), case("SmolLM2-135M", machine(ram))) for ram in (4, 64))
    assert large.data["context"] == "8x"
    assert small.plan is not None and large.plan is not None and small.plan.context < large.plan.context
    assert any(f"a window of {small.plan.context} tokens instead" in reason for reason in small.reasons)
    with pytest.raises(ScalerError):
        case("SmolLM2-135M", machine(4)).plan({**small.data, "context": str(2 * small.plan.context)})


def test_a_window_that_is_there_already_is_not_grown() -> None:
    found = recommend(understand("read 16K tokens and be bigger"), case("Qwen2.5-0.5B", machine(64)))
    assert "context" not in found.data
    assert any("already" in reason for reason in found.reasons)


def test_a_family_without_a_mixture_grows_in_another_way_and_says_so() -> None:
    found = recommend(understand("a mixture of experts"), case("Qwen2.5-0.5B", machine(64)))
    assert found.plan is not None and found.plan.parameters > 10**9
    assert any("cannot grow that way" in reason for reason in found.reasons)


def test_a_machine_that_is_too_small_is_told_so_in_two_lines() -> None:
    with pytest.raises(ScalerError, match="OLMo-2-1124-13B") as refusal:
        recommend(understand("bigger"), case("OLMo-2-1124-13B", machine(8)))
    assert "scaler models" in refusal.value.cure


def test_a_limit_in_the_wish_is_never_raised() -> None:
    found = recommend(understand("more parameters on my GPU with 6 GB"), case("SmolLM2-135M", machine(64)))
    recipe = Recipe.read(found.data, "test")
    assert recipe.limits.memory == 6 * 2**30
    assert found.plan is not None and (found.plan.estimate.memory_bytes or 0) <= 6 * 2**30


def test_the_embedded_model_gets_a_plan_for_every_wish() -> None:
    base = read_architecture(EMBEDDED)
    here = Case(Source(EMBEDDED, "embedded", "apache-2.0", "test"), base, machine(4))
    for wish in WISHES:
        assert fits(recommend(understand(wish), here), machine(4))


def test_the_command_answers_writes_a_recipe_and_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = scaler("wish", "bigger and longer", "--model", "embedded", "-o", "mine.yaml")
    assert written.returncode == 0, written.stderr
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["model"] == "embedded"
    planned = called("plan", "mine.yaml", "--json")
    assert planned.returncode == 0 and json.loads(planned.stdout)["context"] == 256
    asked = called("wish", "hello")
    assert asked.returncode == 3 and asked.stdout == "" and "--choose balanced" in asked.stderr
    chosen = called("wish", "hello", "--choose", "balanced", "--json")
    assert json.loads(chosen.stdout)["recipe"] == "balanced"
    wrong = called("wish", "hello", "--choose", "balanse")
    assert wrong.returncode == 2 and "balanced" in wrong.stderr


def test_the_command_shows_the_models() -> None:
    rows = json.loads(scaler("models", "--json").stdout)
    assert len(rows) >= 30 and [row["parameters"] for row in rows] == sorted(row["parameters"] for row in rows)
    one = called("models", "google/gemma-2-2b").stdout
    assert "Prohibited Use Policy" in one and "identity_blocks" in one
    assert called("models", "nothing-like-it").returncode == 2


OPEN = "better maths and better poems, and 16K tokens"


@pytest.fixture
def reader() -> WishReader:
    return WishReader("embedded")


def test_a_reader_answers_the_open_question_and_the_answer_says_who_gave_it(
    reader: WishReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler_wizard.advise.SURE", 0.0)
    leaning = reader(OPEN, ("reasoning", "creative"))
    found = advised(OPEN, model=None, choose=None, runs=tmp_path, reader=reader)
    assert found.name == leaning.recipe and found.data["context"] == "16K"
    assert any("embedded leans to" in why and "rules leave it open" in why for why in found.reasons)


def test_a_reader_that_is_not_sure_leaves_the_question_open(
    reader: WishReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler_wizard.advise.SURE", 1.01)
    with pytest.raises(Waiting, match="too little to choose"):
        advised(OPEN, model=None, choose=None, runs=tmp_path, reader=reader)


def test_a_readers_belief_is_in_the_choices_and_follows_the_wish(reader: WishReader) -> None:
    first, turned = (reader(OPEN, pair) for pair in (("reasoning", "creative"), ("creative", "reasoning")))
    assert (
        0.5 <= first.share <= 1
        and first.recipe == turned.recipe
        and first.share == pytest.approx(turned.share, abs=0.05)
    )
    pair = ("creative", "room-only")
    told = {wish: reader(wish, pair) for wish in ("poems in the voice of my texts", "room to be trained elsewhere")}
    assert len(set(told.values())) == 2


def test_a_wish_that_the_rules_settle_asks_no_reader(tmp_path: Path) -> None:
    def never(wish: str, choices: object) -> Leaning:
        raise AssertionError(wish)

    assert advised("the longest window", model=None, choose=None, runs=tmp_path, reader=never).name == "max-context"
