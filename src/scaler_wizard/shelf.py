"""What `scaler models` shows: the catalogue as rows, and one model with its licence, its operators and its traps."""

from __future__ import annotations

from scaler_wizard.catalogue import Entry, find, licence_warning, licences, models
from scaler_wizard.errors import ScalerError
from scaler_wizard.gate import tokens
from scaler_wizard.grow import OPERATORS
from scaler_wizard.inspection import KEEPS, applies

Rows = list[tuple[str, str]]


def shelf() -> list[dict[str, str | int | None]]:
    """One row a model, the smallest first."""
    return [
        {
            "model": entry.id,
            "parameters": entry.blueprint.parameters,
            "window": entry.native_context,
            "rope": entry.rope_type,
            "licence": entry.licence,
            "terms": licence_warning(entry.licence),
        }
        for entry in models()
    ]


def details(name: str) -> tuple[Entry, Rows]:
    """One model; raises ScalerError where the catalogue does not know it."""
    entry = find(name)
    if entry is None:
        raise ScalerError(
            f"{name}: not in the catalogue", "see `scaler models`; any supported folder or hub id works all the same"
        )
    view, licence = entry.blueprint, licences().get(entry.licence or "")
    warning = licence_warning(entry.licence)
    rows = [
        ("model", entry.id),
        ("family", view.family),
        ("parameters", f"{view.parameters:,}"),
        ("shape", f"{view.layers} layers, {view.hidden} wide, {view.heads} heads, {view.kv_heads} key/value heads"),
        ("window", "unknown" if entry.native_context is None else tokens(entry.native_context)),
        ("positions", f"RoPE {entry.rope_type}"),
        ("licence", "unknown" if licence is None else f"{licence.title} ({licence.url})"),
        *([("  mind", warning)] if warning else []),
        *(("note", note) for note in entry.notes),
        *(("source", source) for source in entry.sources),
        ("checked", entry.checked.isoformat()),
    ]
    found = [applies(name, view) for name in OPERATORS]
    rows += [(f"  {one.op}", KEEPS[one.preserves]) for one in found if one.preserves is not None]
    return entry, rows
