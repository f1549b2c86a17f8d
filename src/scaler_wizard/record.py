"""The base of everything that crosses a border (a file, a process, a browser): frozen, strict, documented in place."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError

from scaler_wizard.errors import ScalerError


class Record(BaseModel):
    """Frozen; unknown fields refused; the docstring under a field is its help, its schema text, its reference entry."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=True, ser_json_inf_nan="strings"
    )

    @classmethod
    def read(cls, data: Mapping[str, Any], name: str) -> Self:
        """Validate `data` that came from `name` (a file or an argument); a slip becomes two lines for a person."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _for_people(error, cls, name) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one JSON file."""
        return cls.read(from_json(path.read_text(encoding="utf-8")), path.name)


def to_json(data: Any) -> str:
    """Valid JSON on one line; NaN and infinities are explicit, since plain JSON would lose or break on them."""
    return json.dumps(explicit(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def explicit(data: Any) -> Any:
    """Replace non-finite numbers by {"value": null, "nonfinite": "nan" | "inf" | "-inf"}, all the way down."""
    if isinstance(data, BaseModel):
        return explicit(data.model_dump(mode="python", by_alias=True))
    if isinstance(data, Mapping):
        return {str(key): explicit(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [explicit(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return {"value": None, "nonfinite": str(data)}
    if isinstance(data, datetime):
        return data.isoformat()
    if isinstance(data, (Path, UUID)):
        return str(data)
    return data


def from_json(text: str) -> Any:
    """The inverse of `to_json`: explicit non-finite numbers become floats again."""
    return _implicit(json.loads(text))


def _implicit(data: Any) -> Any:
    if isinstance(data, dict):
        if data.keys() == {"value", "nonfinite"}:
            return float(data["nonfinite"])
        return {key: _implicit(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_implicit(value) for value in data]
    return data


def _for_people(error: ValidationError, cls: type[BaseModel], name: str) -> ScalerError:
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])  # a typo also leaves one missing
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        missing = {str(one["loc"][-1]) for one in found if one["loc"][:-1] == first["loc"][:-1]} - {first["loc"][-1]}
        known = sorted(_fields(cls, first["loc"][:-1]) | missing)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known) or 'none'}"
        return ScalerError(f"{name}: {where}: no such field", hint)
    if first["type"] == "missing":
        return ScalerError(f"{name}: {where}: missing", "add this field")
    message = first["msg"].removeprefix("Value error, ")
    if not where:  # about several fields at once
        return ScalerError(f"{name}: {message}", "change one of them and try again")
    return ScalerError(f"{name}: {where}: {message} (got {first['input']!r:.80})", "change this value and try again")


def _fields(cls: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Names known at `path`; followed are nested records and tuples of them, since a union has no single answer."""
    kind: Any = cls
    for part in path:
        if isinstance(part, int):
            kind = next(iter(get_args(kind)), None)
        else:
            field = kind.model_fields.get(part) if _is_record(kind) else None
            kind = field.annotation if field else None
    return set(kind.model_fields) if _is_record(kind) else set()


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
