"""Read mergekit's YAML (github.com/arcee-ai/mergekit, docs/merge_methods.md) into our own merge block.

Everything in it means what it means there; what is not supported is refused by name, never dropped. Differences that
remain: all arithmetic is in fp32, so `dtype` only names the type that is written where `out_dtype` does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.method import Method

KNOWN = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "parameters",
    "configuration",
    "grow",
)
RENAMED = {"lambda": "scale", "normalize_weights": "normalize"}
NO_EFFECT = {"int8_mask": None}
"""Saves memory there; here nothing needs saving."""
FIXED: Mapping[tuple[str, str], Any] = {
    ("multislerp", "eps"): 1e-8,
    ("ties", "rescale"): False,
    ("task_arithmetic", "rescale"): False,
    ("task_arithmetic", "density"): 1.0,
    ("breadcrumbs", "rescale"): False,
    ("breadcrumbs_ties", "rescale"): False,
    ("nuslerp", "nuslerp_row_wise"): False,  # by columns, in spite of its name
}
"""Parameters that have one value here."""
FLATTEN = "nuslerp_flatten"
"""One angle for the whole tensor; false is our `row_wise`."""
BASE_FIRST = ("slerp",)
FROM_BASE = ("needed", "possible")
INPUTS = ("models", "slices")
ONLY_MODULE = "default"
MODULE_LEVEL = "parameters of the module"
Levels = list[Mapping[str, Any]]


def translated(data: Mapping[str, Any], name: str, methods: Mapping[str, type[Method]]) -> dict[str, Any]:
    """mergekit's configuration as our block."""
    _refuse_unknown(data, name)
    data = _unwrapped(data, name)
    asked = str(data["merge_method"])
    if asked not in methods:
        raise ScalerError(f"{name}: merge_method: {asked} is not supported", f"choose from {', '.join(methods)}")
    kind = methods[asked]
    base = data.get("base_model")
    sources = list(_sources(data, name, kind))
    block: dict[str, Any] = {"method": asked, "dtype": data.get("out_dtype") or data.get("dtype")}
    block |= {"configuration": data.get("configuration"), "grow": data.get("grow"), "tokenizer": _tokenizer(data, name)}
    if base is not None and kind.base_is in FROM_BASE:
        block["base"] = base
        sources = [(source, levels) for source, levels in sources if source["model"] != base]
    elif base is not None:
        block |= _without_base(sources, base, asked, name)
    block |= _settings(kind, asked, [level for _, levels in sources[:1] for level in levels[1:]], name)
    block["models"] = [source | _own(kind, asked, levels, name) for source, levels in sources]
    if asked in BASE_FIRST and base is not None:
        block["models"] = sorted(block["models"], key=lambda model: model["model"] != base)
    return {key: value for key, value in block.items() if value is not None}


def _refuse_unknown(data: Mapping[str, Any], name: str) -> None:
    for key in data:
        if key not in KNOWN:
            close = difflib.get_close_matches(str(key), KNOWN, n=1)
            raise ScalerError(f"{name}: {key}: no such field", f"did you mean {close[0]}?" if close else _listed(KNOWN))
    if data.get("chat_template") not in (None, "auto"):
        raise ScalerError(f"{name}: chat_template: not supported", "leave it out; the template is the tokenizer's")
    if sum(key in data for key in (*INPUTS, "modules")) != 1:
        raise ScalerError(f"{name}: exactly one of models, slices and modules is needed", "keep one of them")


def _unwrapped(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A language model is one module there, called `default`: what it holds, as if it stood outside."""
    if "modules" not in data:
        return data
    modules = _mapping(data["modules"], f"{name}: modules")
    if list(modules) != [ONLY_MODULE]:
        what = ", ".join(map(str, modules)) or "none"
        raise ScalerError(
            f"{name}: modules: {what}: a language model is the one module {ONLY_MODULE}",
            "merge the language model alone",
        )
    module = _entry(modules[ONLY_MODULE], f"{name}: modules.{ONLY_MODULE}", (*INPUTS, "parameters"), needed=None)
    if sum(key in module for key in INPUTS) != 1:
        raise ScalerError(f"{name}: modules.{ONLY_MODULE}: exactly one of models and slices is needed", "keep one")
    inner = {key: module[key] for key in INPUTS if key in module}
    return {**data, **inner, MODULE_LEVEL: _mapping(module.get("parameters"), f"{name}: modules.{ONLY_MODULE}")}


def _tokenizer(data: Mapping[str, Any], name: str) -> str | None:
    spec = data.get("tokenizer")
    if spec is None:
        return data.get("tokenizer_source")
    extra = [key for key in spec if key != "source"] if isinstance(spec, Mapping) else [str(spec)]
    if extra:
        raise ScalerError(f"{name}: tokenizer.{extra[0]}: not supported", "give `tokenizer: {source: union}` or `base`")
    return str(spec["source"]) if spec.get("source") else None


def _sources(data: Mapping[str, Any], name: str, kind: type[Method]) -> Iterator[tuple[dict[str, Any], Levels]]:
    """Each input, and the levels of parameters that hold for it, the narrowest first."""
    everywhere = [data.get(MODULE_LEVEL, {}), _mapping(data.get("parameters"), f"{name}: parameters")]
    for number, entry in enumerate(data.get("models") or ()):
        own = _entry(entry, f"{name}: models.{number}", ("model", "parameters"))
        yield {"model": str(own["model"])}, [_mapping(own.get("parameters"), f"{name}: models.{number}"), *everywhere]
    slices = data.get("slices") or ()
    if len(slices) > 1 and not kind.stacks:
        raise ScalerError(f"{name}: slices: several of them are supported for passthrough alone", "merge whole models")
    for number, part in enumerate(slices):
        where = f"{name}: slices.{number}"
        _entry(part, where, ("sources", "parameters"), needed="sources")
        if kind.stacks and len(part["sources"]) != 1:
            raise ScalerError(f"{where}: passthrough takes one source a slice", "make a slice of each")
        shared = _mapping(part.get("parameters"), where)
        for place, entry in enumerate(part["sources"]):
            own = _entry(entry, f"{where}.sources.{place}", ("model", "layer_range", "parameters"))
            narrow = _mapping(own.get("parameters"), f"{where}.sources.{place}")
            yield {"model": str(own["model"]), "layers": own.get("layer_range")}, [narrow, shared, *everywhere]


def _entry(entry: Any, where: str, known: tuple[str, ...], *, needed: str | None = "model") -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or (needed is not None and needed not in entry):
        raise ScalerError(f"{where}: {needed or 'a group of fields'}: missing", "add it")
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise ScalerError(
                f"{where}: {key}: not supported", f"did you mean {close[0]}?" if close else _listed(known)
            )
    return entry


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ScalerError(f"{where}: parameters are a mapping (got {value!r:.60})", "write name: value")
    return value or {}


def _without_base(sources: list[Any], base: str, asked: str, name: str) -> dict[str, Any]:
    """A base that is not subtracted gives its configuration; it is merged where it is listed."""
    if base not in [source["model"] for source, _ in sources]:
        if asked in BASE_FIRST:
            sources.insert(0, ({"model": base}, [{}, *(sources[0][1][1:] if sources else [])]))
            return {}
        raise ScalerError(f"{name}: base_model: {asked} does not use it", "list it under models, or leave it out")
    return {"configuration": base}


# -- parameters -----------------------------------------------------------------------------------------------------


def _names(kind: type[Method]) -> tuple[set[str], set[str]]:
    """Settings of the method, and settings of each model."""
    annotation = kind.model_fields["models"].annotation
    entry = annotation.__args__[0]  # type: ignore[union-attr]
    general = set(kind.model_fields) - set(Method.model_fields) - {"method"}
    return general, set(entry.model_fields) - {"model", "layers"}


def _settings(kind: type[Method], asked: str, levels: Levels, name: str) -> dict[str, Any]:
    general, own = _names(kind)
    found = {}
    for key in _keys(kind, asked, levels, name, general | own):
        if key == FLATTEN:
            found["row_wise"] = not _layered(kind, key, levels)
        elif RENAMED.get(key, key) in general:
            found[RENAMED.get(key, key)] = _layered(kind, key, levels)
    return found


def _own(kind: type[Method], asked: str, levels: Levels, name: str) -> dict[str, Any]:
    general, own = _names(kind)
    entry = kind.model_fields["models"].annotation.__args__[0]  # type: ignore[union-attr]
    found = {}
    for key in _keys(kind, asked, levels, name, general | own):
        if RENAMED.get(key, key) in own:
            found[RENAMED.get(key, key)] = _layered(entry, key, levels)
        elif any(key in level for level in levels[:1]) and RENAMED.get(key, key) in general:
            raise ScalerError(f"{name}: {key}: holds for the whole merge", "move it to the outer `parameters:`")
    return found


def _keys(kind: type[Method], asked: str, levels: Levels, name: str, known: set[str]) -> Iterator[str]:
    """Parameters that are set at any level and mean something; the others are refused by name."""
    for key in dict.fromkeys(key for level in levels for key in level):
        values = [level[key] for level in levels if key in level]
        if key in NO_EFFECT:
            continue
        if (asked, key) in FIXED:
            if any(value != FIXED[asked, key] for value in values):
                raise ScalerError(f"{name}: {key}: is always {FIXED[asked, key]} for {asked} here", "leave it out")
        elif RENAMED.get(key, key) in known or (asked, key) == ("nuslerp", FLATTEN):
            yield key
        else:
            close = difflib.get_close_matches(str(key), [*known, *RENAMED], n=1)
            raise ScalerError(
                f"{name}: {key}: {asked} has no such parameter",
                f"did you mean {close[0]}?" if close else _listed(known),
            )


def _layered(kind: type[Any], key: str, levels: Levels) -> Any:
    """A parameter over all its levels: the narrower come first, the default comes last."""
    entries: list[dict[str, Any]] = []
    for level in levels:
        if key in level:
            entries += _entries(level[key])
    if entries[0].get("filter", "*") == "*":
        return entries[0]["value"]
    field = kind.model_fields[RENAMED.get(key, key)]
    if not field.is_required() and all(entry.get("filter", "*") != "*" for entry in entries):
        entries.append({"value": field.default})
    return entries


def _entries(value: Any) -> list[dict[str, Any]]:
    """Any of mergekit's forms as a list of filters."""
    parts = value if isinstance(value, list) and any(isinstance(part, Mapping) for part in value) else [value]
    found = []
    for part in parts:
        entry = dict(part) if isinstance(part, Mapping) else {"value": part}
        if entry.get("filter") is None:
            entry.pop("filter", None)
        found.append(entry)
    return found


def _listed(names: Any) -> str:
    return f"known here: {', '.join(sorted(names))}"
