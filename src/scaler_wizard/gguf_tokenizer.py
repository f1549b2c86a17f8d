"""A tokenizer.json in llama.cpp's words: byte-level BPE, and SentencePiece's BPE with byte fallback.

Of a byte-level BPE llama.cpp must know by name how text is cut before merging. SentencePiece's merges become scores:
the earlier a piece was merged, the higher, which is how SentencePiece itself numbers them. Not covered: unigram models,
and normalisers that do more than put a mark in the place of spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError

NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens."""
SPACE = "\u2581"
"""SentencePiece's mark for a space."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {(WORDS % "{1,3}", True): "llama-bpe", (WORDS % "{1,3}", False): "dbrx", (WORDS % "", False): "qwen2"}
"""llama.cpp's names by how text is cut and whether whole words are looked up before merging; digits stand in threes, or
alone."""


def write_tokenizer(writer: Any, folder: Path, rows: int, config: Mapping[str, Any]) -> None:
    """Tokens, their kinds, merges or scores, and what begins and ends a text; rows without a token are unused."""
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = data["model"]
    names = {number: token for token, number in model["vocab"].items()} if isinstance(model["vocab"], dict) else {}
    special = {token["id"]: token for token in data.get("added_tokens", []) if token["id"] < rows}
    names |= {number: token["content"] for number, token in special.items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    if model["type"] != "BPE":
        raise _unknown()
    if model.get("byte_fallback"):
        _write_sentencepiece(writer, data, names, merges, rows)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(data))
        writer.add_token_merges(merges)
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in range(rows)])
    unknown = names and model.get("unk_token")
    writer.add_token_types([_kind(number, names, special, unknown) for number in range(rows)])
    for key, add in (("bos_token_id", "add_bos_token_id"), ("eos_token_id", "add_eos_token_id")):
        number = config.get(key)
        if isinstance(number, int):
            getattr(writer, add)(number)
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _kind(number: int, names: Mapping[int, str], special: Mapping[int, Any], unknown: Any) -> int:
    if number not in names:
        return UNUSED
    if names[number] == unknown:
        return UNKNOWN
    if BYTE_TOKEN.fullmatch(names[number]):
        return BYTE
    if number not in special:
        return NORMAL
    return CONTROL if special[number]["special"] else ADDED


def _write_sentencepiece(
    writer: Any, data: Mapping[str, Any], names: Mapping[int, str], merges: list[str], rows: int
) -> None:
    """llama.cpp merges the pair whose token has the highest score."""
    first: dict[str, int] = {}
    for place, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", ""), place)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(_leading_space(data))
    writer.add_token_scores([-float(first.get(names.get(number, ""), len(merges))) for number in range(rows)])


def _leading_space(data: Mapping[str, Any]) -> bool:
    """Whether a mark is put before the text; refuses what does more to it."""
    steps = [step for part in ("normalizer", "pre_tokenizer") for step in _steps(data.get(part))]
    prefix = False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "\u2581"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                pass
            case {"type": "Metaspace", "replacement": "\u2581"}:
                prefix = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                pass  # Gemma's, after spaces were replaced: it cuts nowhere
            case _:
                raise _unknown()
    return prefix


def _steps(part: Any) -> list[Any]:
    if part is None:
        return []
    return list(part.get("normalizers") or part.get("pretokenizers") or [part])


def _cut(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is cut before merging; it knows them by name only."""
    steps = _steps(data.get("pre_tokenizer"))
    kinds, whole = [step["type"] for step in steps], bool(data["model"].get("ignore_merges"))
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and not whole:
        return "smollm"
    if kinds == ["ByteLevel"] and not whole:
        return "gpt-2"
    patterns = [(step["pattern"].get("Regex"), whole) for step in steps if step["type"] == "Split"]
    if len(patterns) == 1 and patterns[0] in CUTS:
        return CUTS[patterns[0]]
    raise _unknown()


def _unknown() -> ScalerError:
    return ScalerError("this model's tokenizer has no counterpart here", "use llama.cpp's convert_hf_to_gguf.py")
