"""What of a wish for training can be seen to fail before anything begins: text that is none, a teacher that speaks
another language. No torch; what takes longer to see is refused when the training starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaler_wizard.data import LEAST_CHARACTERS
from scaler_wizard.errors import ScalerError
from scaler_wizard.hub import is_hub_data
from scaler_wizard.prepare import text_files
from scaler_wizard.readers import Unreadable, texts

PACKED = (".pdf", ".docx", ".epub", ".parquet", ".zip")
"""Kinds whose text may be larger than the file."""


def refuse_no_text(source: str) -> None:
    """Raise ScalerError where a recipe's text is missing, empty, binary at its beginning, or plainly too short."""
    if source == "kjv" or is_hub_data(source):
        return
    files = text_files(Path(source))
    size = sum(file.stat().st_size for file in files)
    if size < LEAST_CHARACTERS and not any(file.suffix.lower() in PACKED for file in files):
        raise ScalerError(f"data: {source}: too short ({size} bytes)", f"give at least {LEAST_CHARACTERS} characters")
    try:
        next(texts(files[0]), None)
    except Unreadable as reason:
        cure = "mend it or take it out; `scaler prepare` sorts a whole folder and says what it left out"
        raise ScalerError(f"data: {files[0].name}: {reason}", cure) from None


def refuse_another_vocabulary(base: Path, teacher: Path, name: str) -> None:
    """Raise ScalerError where both folders say which tokens they know and these differ; a folder that does not is left
    to the training, which asks the tokenizers themselves.
    """
    ours, theirs = _tokens(base), _tokens(teacher)
    if ours is None or theirs is None or ours == theirs:
        return
    differing = sum(theirs.get(token) != number for token, number in ours.items())
    raise ScalerError(
        f"heal.distil.teacher: {name}: another vocabulary ({differing} of {len(ours)} tokens differ)",
        "choose a teacher with the model's own tokenizer, such as `base`, or a larger model of its family",
    )


def _tokens(folder: Path) -> dict[str, int] | None:
    """Number of each token, by tokenizer.json; None where that does not say."""
    file = folder / "tokenizer.json"
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
        known = said["model"]["vocab"]
        found = {token: number for number, (token, _) in enumerate(known)} if isinstance(known, list) else dict(known)
        return found | {token["content"]: token["id"] for token in said.get("added_tokens", ())}
    except (OSError, ValueError, KeyError, TypeError):
        return None
