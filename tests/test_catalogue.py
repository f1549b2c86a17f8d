"""The catalogue of starting models: data that agrees with itself, and licences that speak up."""

import pytest

from machines import machine
from scaler_wizard.architecture import FAMILIES
from scaler_wizard.catalogue import Entry, find, licence_warning, licences, models, unfetched
from scaler_wizard.errors import ScalerError
from scaler_wizard.inspection import applies
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.plan import make_plan
from scaler_wizard.recipe import Recipe, count

ENTRIES = models()


def ids(entry: Entry) -> str:
    return entry.id


def test_some_thirty_models_stand_in_it_each_once_and_each_of_a_family_that_grows() -> None:
    assert len(ENTRIES) >= 30
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES)
    assert {entry.config["model_type"] for entry in ENTRIES} <= set(FAMILIES)
    assert {entry.licence for entry in ENTRIES} - {None} <= set(licences())


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_the_sizes_give_the_number_of_parameters_that_its_maker_publishes(entry: Entry) -> None:
    if entry.published is not None:
        assert entry.blueprint.parameters == pytest.approx(count(entry.published), rel=0.015)
    assert entry.blueprint.parameters > 10**8


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_some_operator_that_keeps_the_function_applies(entry: Entry) -> None:
    kept = [applies(op, entry.blueprint).preserves for op in ("identity_blocks", "widen_ffn", "grow_vocabulary")]
    assert {"bitwise", "exact"} & set(kept)


def test_a_window_is_what_the_configuration_says_and_unknown_stays_unknown() -> None:
    windows = {entry.name: entry.native_context for entry in ENTRIES}
    assert windows["TinyLlama-1.1B-Chat-v1.0"] == 2048
    assert windows["gemma-3-1b-it"] == 32768
    assert windows["Falcon3-1B-Base"] is None
    with pytest.raises(ScalerError, match="window"):
        unfetched(next(entry for entry in ENTRIES if entry.native_context is None))


def test_a_model_that_was_not_fetched_has_every_tensor_of_its_configuration() -> None:
    entry = find("smollm2-135m")
    assert entry is not None
    assert (
        sum(tensor.elements for tensor in unfetched(entry).tensors.values())
        == 134_515_008
        == entry.blueprint.parameters
    )


def test_a_name_is_found_by_its_id_or_by_its_last_part() -> None:
    assert find("google/gemma-2-2b") is find("GEMMA-2-2B") is not None
    assert find("no-such-model") is None


def test_licences_with_terms_warn_and_the_usual_ones_are_silent() -> None:
    assert licence_warning("apache-2.0") is None and licence_warning("MIT") is None
    gemma = licence_warning("gemma")
    assert gemma is not None and "ai.google.dev/gemma/terms" in gemma
    assert "Built with Llama" in (licence_warning("llama3.2") or "")
    assert "unknown" in (licence_warning(None) or "")
    assert "read it" in (licence_warning("some-licence-1.0") or "")


@pytest.mark.parametrize(
    ("name", "licence", "word"),
    [
        ("embedded", "apache-2.0", None),
        ("gemma-2-2b", None, "Gemma"),
        ("mine", None, "unknown"),
        ("mine", "gemma", "Gemma"),
    ],
)
def test_a_plan_shows_what_the_licence_asks(name: str, licence: str | None, word: str | None) -> None:
    from scaler_wizard.architecture import read_architecture

    source = Source(EMBEDDED, name, licence, "test")
    plan = make_plan(Recipe(model="embedded", context="2x"), source, read_architecture(EMBEDDED), machine(16))
    shown = [note for note in plan.notes if "licence" in note.lower() or "terms" in note.lower()]
    assert bool(shown) == (word is not None) and (word is None or word in shown[0])


def test_every_entry_says_where_and_when_it_was_read() -> None:
    assert all(entry.sources and entry.checked.year >= 2026 for entry in ENTRIES)
