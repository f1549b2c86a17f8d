"""Open models to begin with, and what their licences ask of a grown model: data with sources and dates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from scaler_wizard.architecture import ITEM_BYTES, Architecture, Blueprint, Tensor
from scaler_wizard.errors import ScalerError
from scaler_wizard.record import Record

FILE = Path(__file__).parent / "catalogue.yaml"


class Licence(Record):
    """A licence in short words; its own text counts."""

    title: str
    """Its name."""
    url: str
    """Where its text is."""
    warning: str | None
    """What it asks of a grown model beyond attribution; null for the usual open-source licences."""


class Entry(Record):
    """One model, by what was looked up; null is unknown."""

    id: str
    """Hub id."""
    licence: str | None
    """Key of its licence; null where it was not verified."""
    published: str | None
    """Number of parameters as its maker gives it."""
    config: dict[str, Any]
    """The part of config.json that decides sizes, window and positions."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Where this was read."""
    checked: date
    """When."""
    notes: tuple[str, ...] = ()
    """Traps, and how it behaves at run time."""

    @property
    def name(self) -> str:
        """The id without its maker."""
        return self.id.rpartition("/")[2]

    @property
    def native_context(self) -> int | None:
        """Window in tokens; None where sources disagree."""
        return self.config.get("max_position_embeddings")

    @property
    def rope_type(self) -> str:
        """How its rotary positions are scaled."""
        return str((self.config.get("rope_scaling") or {}).get("rope_type", "default"))

    @property
    def blueprint(self) -> Blueprint:
        """The model's sizes, as growth and estimates see them."""
        return Blueprint(self.config)


class _Catalogue(Record):
    licences: dict[str, Licence]
    models: tuple[Entry, ...]


@cache
def _read() -> _Catalogue:
    return _Catalogue.read(yaml.safe_load(FILE.read_text(encoding="utf-8")), FILE.name)


def models() -> tuple[Entry, ...]:
    """Every model of the catalogue, the smallest first."""
    return tuple(sorted(_read().models, key=lambda entry: entry.blueprint.parameters))


def licences() -> Mapping[str, Licence]:
    """Every licence by its key."""
    return _read().licences


def find(name: str) -> Entry | None:
    """The model with this hub id or name, capitals aside; None where the catalogue does not know it."""
    wanted = name.rstrip("/").casefold()
    return next((one for one in _read().models if wanted in (one.id.casefold(), one.name.casefold())), None)


def licence_warning(licence: str | None) -> str | None:
    """What a person has to know before growing a model of this licence; None where it is a usual open-source one."""
    if licence is None:
        return "The licence is unknown: find it out before you distribute a grown model."
    known = licences().get(licence.casefold())
    if known is None:
        return f"The licence ({licence!r:.60}) is not one that this catalogue knows: read it before you distribute."
    return None if known.warning is None else f"{known.title}: {known.warning} ({known.url})"


def unfetched(entry: Entry) -> Architecture:
    """The model as a plan sees it, without its files: every tensor by name and shape, in bfloat16.

    Raises ScalerError where the window is unknown, since no plan can be made without it.
    """
    if entry.native_context is None:
        raise ScalerError(f"{entry.id}: its window is not known here", "fetch the model and give its folder")
    folder, start, tensors = Path(entry.name), 0, {}
    for place in entry.blueprint.places():
        end = start + math.prod(place.shape) * ITEM_BYTES["BF16"]
        tensors[place.name] = Tensor(place.name, "BF16", place.shape, folder / "model.safetensors", start, end)
        start = end
    return Architecture(config=entry.config, folder=folder, tensors=tensors)
