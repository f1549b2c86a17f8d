"""What would spoil a merge, found before a byte is written: from configurations, headers and small samples.

Refused are other sizes, settings or tokenizers, models without a common ancestor, and broken numbers. Samples hold a
few thousand numbers of each model; all numbers are checked for NaN and infinity once more while they are streamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scaler_wizard.architecture import Blueprint, Place
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.method import Method
from scaler_wizard.merge.program import Parent, leader, run_of
from scaler_wizard.weights.evaluate import Source, evaluate

Floats = npt.NDArray[np.float64]
SIZES = {
    "hidden": "hidden size",
    "heads": "query heads",
    "kv_heads": "key/value heads",
    "head_dim": "head width",
    "ffn": "feed-forward neurons",
    "experts": "experts",
    "vocabulary": "vocabulary",
}
FUNCTION = (
    "rope",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "layer_types",
    "sliding_window",
    "hidden_act",
    "hidden_activation",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "partial_rotary_factor",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "num_experts_per_tok",
    "norm_topk_prob",
)
"""Settings that change what the same weights compute."""
RELATED = 0.2
"""Smallest cosine between the weights of two models that may be merged. Fine-tunes of one base are above 0.9, long
continued training is above 0.5, independent training is within 0.01 of 0."""
MATRICES, ROWS = 12, 4
"""How many matrices, and how many rows of each, are sampled."""


def check(method: Method, parents: Mapping[str, Parent]) -> tuple[str, ...]:
    """Refuse what cannot be merged; returns what was reconciled, in sentences."""
    ordered = list(dict.fromkeys([*([method.base] if method.base else []), *(model.model for model in method.models)]))
    models = [parents[name] for name in ordered]
    _families(models)
    _sizes(models)
    _depths(method, parents)
    notes = tuple(_functions(method, models))
    _heads(parents[leader(method)], models)
    _samples(models, stacks=method.stacks)
    return notes


def _families(models: Sequence[Parent]) -> None:
    for other in models[1:]:
        if other.view.family != models[0].view.family:
            raise ScalerError(
                f"{models[0].name} is a {models[0].view.family} model, {other.name} a {other.view.family} model",
                "merge models of one architecture",
            )


def _sizes(models: Sequence[Parent]) -> None:
    for attribute, word in SIZES.items():
        for other in models[1:]:
            one, two = getattr(models[0].view, attribute), getattr(other.view, attribute)
            if one != two:
                raise ScalerError(
                    f"{word}: {one} in {models[0].name}, {two} in {other.name}",
                    "merge models of one size, or set grow: true: the smaller one grows without changing its function",
                )


def _depths(method: Method, parents: Mapping[str, Parent]) -> None:
    if method.stacks:
        return
    runs = {model.model: run_of(model, parents) for model in method.models}
    lengths = {name: stop - start for name, (start, stop) in runs.items()}
    if method.base is not None and all(model.layers is None for model in method.models):
        lengths[method.base] = parents[method.base].view.layers
    first, *others = lengths
    for name in others:
        if lengths[name] != lengths[first]:
            raise ScalerError(
                f"layers: {lengths[first]} of {first}, {lengths[name]} of {name}",
                "merge equally many, or set grow: true: the smaller one is deepened without changing its function",
            )


def _heads(first: Parent, models: Sequence[Parent]) -> None:
    lost = next((model for model in models if first.view.tied and not model.view.tied), None)
    if lost is not None:
        raise ScalerError(
            f"the head of {lost.name} would be lost: {first.name} has none of its own",
            f"give the merged model one: `configuration: {lost.name}`",
        )


def setting(view: Blueprint, key: str) -> Any:
    """A setting that changes the function, as transformers understands it."""
    if key == "rope":
        return {"rope_type": "default", **view.rope}
    if key == "layer_types":
        return view.layer_types
    return view.value(key)


def _functions(method: Method, models: Sequence[Parent]) -> Iterator[str]:
    for key in FUNCTION:
        if key == "layer_types" and method.stacks:
            continue
        for other in models[1:]:
            one, two = setting(models[0].view, key), setting(other.view, key)
            if key == "layer_types" and one != two and models[0].view.layers != other.view.layers:
                continue
            if one == two:
                continue
            if method.configuration is None:
                raise ScalerError(
                    f"{key}: {_short(one)} in {models[0].name}, {_short(two)} in {other.name}",
                    "the same weights compute something else under each; name the model whose settings the merged one "
                    f"gets: `configuration: {other.name}`",
                )
            both = f"{_short(one)} in {models[0].name}, {_short(two)} in {other.name}"
            yield f"{key}: {both}; the merged model has that of {method.configuration}"


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 90 else text[:87] + "..."


# -- samples --------------------------------------------------------------------------------------------------------


def _samples(models: Sequence[Parent], *, stacks: bool) -> None:
    source = Source(0)
    try:
        found = {model.name: sampled(model, source) for model in models}
    finally:
        source.close()
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ScalerError(f"{name}: holds NaN or infinity", "fetch the model again, or leave it out")
    if stacks:
        return
    first, *others = found
    for name in others:
        alike = cosine(found[first], found[name])
        if alike < RELATED:
            raise ScalerError(
                f"{first} and {name} have no common ancestor: the cosine of their weights is {alike:.3f}",
                "merge models that were trained from the same base; others compute with unrelated neurons",
            )


def sampled(model: Parent, source: Source) -> Floats:
    """Some thousand weights at places that are the same in all models of one shape."""
    places = [place for place in model.view.places() if len(place.shape) == 2 and place.row.role != "head"]
    chosen = places[:: max(1, len(places) // MATRICES)]
    return np.concatenate([_rows(model, place, source) for place in chosen])


def _rows(model: Parent, place: Place, source: Source) -> Floats:
    tensor, rows = model.tensors[place.name], place.shape[0]
    starts = {rows * number // ROWS for number in range(ROWS)}
    found = [evaluate(tensor, start, start + 1, source)[0, :1024] for start in sorted(starts)]
    return np.concatenate(found).astype(np.float64)


def cosine(one: Floats, two: Floats) -> float:
    """Of the angle between two samples; 0 where one is all zeros."""
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / lengths if lengths else 0.0


# -- tokenizers -----------------------------------------------------------------------------------------------------


def check_tokenizers(parents: Mapping[str, Parent]) -> None:
    """Refuse models that number their tokens differently: row by row, their embeddings mean other words."""
    known = [parent for parent in parents.values() if (parent.folder / "tokenizer.json").is_file()]
    for other in known[1:]:
        if not same_tokens(known[0].folder, other.folder):
            raise ScalerError(
                f"{known[0].name} and {other.name} number their tokens differently",
                "merge models with one tokenizer; embeddings are not renumbered here",
            )


def same_tokens(one: Path, two: Path) -> bool:
    """Whether two tokenizers give every token the same number."""
    texts = [(folder / "tokenizer.json").read_bytes() for folder in (one, two)]
    return texts[0] == texts[1] or token_numbers(one) == token_numbers(two)


def token_numbers(folder: Path) -> dict[str, int]:
    """Every token of a tokenizer and its number."""
    file = folder / "tokenizer.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = data["model"]["vocab"]
        added = {entry["content"]: entry["id"] for entry in data.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError):
        raise ScalerError(f"{file}: not a tokenizer", "fetch the model again") from None
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return {**vocabulary, **added}
