"""Read a model folder into an Architecture, or say in two lines why it cannot be used."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.architecture.blueprint import Blueprint
from scaler_wizard.architecture.families import FAMILIES, NOT_ROTARY
from scaler_wizard.architecture.header import Tensor, read_header
from scaler_wizard.errors import ScalerError
from scaler_wizard.untrusted.folder import cleaned

LARGEST_CONFIG = 16 * 2**20
LARGEST_TOKENIZER = 256 * 2**20
RECOMPUTED = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")  # buffers that older files carry
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Architecture(Blueprint):
    """A model folder whose configuration and weights agree."""

    folder: Path
    """Where its files are."""
    tensors: Mapping[str, Tensor]
    """Every tensor that counts, by name."""

    @property
    def bytes(self) -> int:
        """Bytes of its weights."""
        return sum(tensor.end - tensor.start for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """Type of most of its weights, in torch's words."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.dtype] += tensor.elements
        return DTYPES[counts.most_common(1)[0][0]]

    @property
    def item_bytes(self) -> int:
        """Bytes of one number of that type."""
        return 4 if self.dtype == "float32" else 2


def read_architecture(folder: Path) -> Architecture:
    """Check config.json against the headers of the weights; reads no weight and runs no code of the folder."""
    config = read_config(folder / "config.json")
    blueprint = Blueprint(config)
    if blueprint.rows.experts:
        _all_layers_sparse(config)
    _lists_fit(blueprint)
    _heads_fit(blueprint)
    _tokens_fit(blueprint, folder / "tokenizer.json")
    return Architecture(config=config, folder=folder, tensors=_matched(blueprint, _headers(folder)))


def read_config(file: Path) -> dict[str, Any]:
    """config.json of a supported, unquantised family; references to code are dropped."""
    config = _json(file, "point at a folder with config.json and *.safetensors")
    model_type = str(config.get("model_type"))
    if model_type in NOT_ROTARY:
        raise ScalerError(
            f"{file.parent.name}: architecture {model_type!r} is not supported: it has {NOT_ROTARY[model_type]}",
            f"take a model with rotary positions: {', '.join(FAMILIES)}",
        )
    if model_type not in FAMILIES:
        raise ScalerError(
            f"{file.parent.name}: architecture {model_type!r:.60} is not supported",
            f"supported are {', '.join(FAMILIES)}",
        )
    if config.get("quantization_config") or config.get("compression_config"):
        raise ScalerError(
            f"{file.parent.name}: the weights are quantised",
            "take the unquantised release, or load it in transformers and save it again: "
            "model.dequantize().to(torch.bfloat16).save_pretrained(FOLDER)",
        )
    aliases = FAMILIES[model_type].aliases
    return {aliases.get(key, key): value for key, value in cleaned(config).items()}


def _json(file: Path, cure: str, *, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    if not file.is_file():
        raise ScalerError(f"{file}: no such file", cure)
    if file.stat().st_size > largest:
        raise ScalerError(f"{file.name}: larger than {largest} bytes", "this is no configuration file")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise ScalerError(f"{file.name}: not valid JSON", "fetch the model again") from None
    if not isinstance(data, dict):
        raise ScalerError(f"{file.name}: not a mapping", "fetch the model again")
    return data


def _headers(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _sharded(folder, index)
    single = folder / "model.safetensors"
    if single.is_file():
        return read_header(single)
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in folder.glob(pattern))
    if others:
        raise ScalerError(
            f"{folder}: {others[0]} holds the weights; only safetensors are read here",
            "take a release with safetensors, or, if you trust its maker: scaler unpickle FOLDER OUT",
        )
    raise ScalerError(f"{folder}: no model.safetensors and no index", "point at a whole model folder")


def _sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    names = _json(index, "").get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ScalerError(f"{index.name}: no weight_map", "fetch the model again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ScalerError(f"{index.name}: {shard!r:.80}: no such file in the folder", "fetch the missing shard")
        found = read_header(folder / shard)
        twice = tensors.keys() & found.keys()
        if twice:
            raise ScalerError(f"{shard}: {min(twice)} is in another shard as well", "fetch the model again")
        tensors |= found
    for name, shard in names.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ScalerError(f"{index.name}: {name:.120} is not in {shard}", "fetch the model again")
    unlisted = tensors.keys() - names.keys()
    if unlisted:
        raise ScalerError(
            f"{index.name}: has no entry for {min(unlisted):.120}, which {tensors[min(unlisted)].file.name} holds",
            "fetch the index again; loaders would fill the missing weights with random numbers",
        )
    return tensors


def _matched(blueprint: Blueprint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the configuration asks for, each with the shape that it gives."""
    found: dict[str, Tensor] = {}
    for place in blueprint.places():
        tensor = tensors.get(place.name)
        if tensor is None:
            raise ScalerError(f"{place.name}: config.json asks for it, the weights lack it", "fetch the model again")
        if tensor.shape != place.stored_shape:
            raise ScalerError(
                f"{place.name}: shape {list(tensor.shape)} in the weights, {list(place.stored_shape)} by config.json",
                "use the config.json that belongs to these weights",
            )
        found[place.name] = tensor
    extra = [name for name in tensors if name not in found and not _ignored(blueprint, name)]
    if extra:
        raise ScalerError(
            f"{min(extra):.120}: {len(extra)} tensors that a {blueprint.family} model does not have",
            "use the config.json that belongs to these weights",
        )
    return found


def _ignored(blueprint: Blueprint, name: str) -> bool:
    return name.endswith(RECOMPUTED) or (blueprint.tied and name == "lm_head.weight")


def _lists_fit(blueprint: Blueprint) -> None:
    for key in ("layer_types", *blueprint.rows.lists):
        listed = blueprint.config.get(key)
        if listed is not None and (not isinstance(listed, list) or len(listed) != blueprint.layers):
            raise ScalerError(
                f"config.json: {key} does not list {blueprint.layers} layers", "use the config.json of these weights"
            )


def _heads_fit(blueprint: Blueprint) -> None:
    if blueprint.head_dim < 1 or blueprint.heads % blueprint.kv_heads:
        raise ScalerError(
            f"config.json: {blueprint.heads} query heads, {blueprint.kv_heads} key/value heads and a hidden size of "
            f"{blueprint.hidden} do not fit together",
            "use the config.json that belongs to these weights",
        )


def _tokens_fit(blueprint: Blueprint, file: Path) -> None:
    """No token of the tokenizer's vocabulary may stand outside the embedding.

    Added tokens may (Gemma 3 has one for images, which text never holds). The file is searched, and read as JSON only
    where a number looks too large, since reading one takes a tenth of a second.
    """
    if not file.is_file() or file.stat().st_size > LARGEST_TOKENIZER:
        return
    raw = file.read_bytes()
    listed = raw[raw.find(b'"vocab"') : raw.rfind(b'"merges"')]
    if not re.search(rb'": ?(?:%b)[,}\s]' % _from(blueprint.vocabulary), listed):
        return
    model = _json(file, "", largest=LARGEST_TOKENIZER).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = [number for number in vocabulary.values() if type(number) is int] if isinstance(vocabulary, dict) else []
    if max(numbers, default=0) >= blueprint.vocabulary:
        raise ScalerError(
            f"{file.name}: numbers tokens up to {max(numbers)}, the embedding has {blueprint.vocabulary} rows",
            "use the tokenizer.json that belongs to these weights",
        )


def _from(number: int) -> bytes:
    """A regular expression for whole numbers from `number` on: more digits, or a larger one at some place."""
    digits = str(number)
    found = [rb"[1-9]\d{%d,}" % len(digits)]
    for place, digit in enumerate(digits):
        rest = len(digits) - 1 - place
        lowest = int(digit) + (rest > 0)
        if lowest <= 9:
            found.append(digits[:place].encode() + rb"[%d-9]\d{%d}" % (lowest, rest))
    return b"|".join(found)


def _all_layers_sparse(config: Mapping[str, Any]) -> None:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ScalerError("config.json: some layers are dense and some are mixtures", "such models are not supported")
