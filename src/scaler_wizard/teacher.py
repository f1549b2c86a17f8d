"""A teacher: a model whose view of a text is asked for once and then kept on disk.

What is kept is found by what was read (the tokens of a piece) in a file that is named by who read it (the teacher's
weights) and how, so a second run, a control arm or a resumed training costs no teacher.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch.nn import functional

from scaler_wizard.architecture import read_architecture
from scaler_wizard.attention import by_piece
from scaler_wizard.batches import Batch
from scaler_wizard.distill import Hidden, Likeliest, View
from scaler_wizard.errors import ScalerError
from scaler_wizard.imitate import Imitation, Inside, pairs_of, watched
from scaler_wizard.losses import CHUNK
from scaler_wizard.models import load_model, load_tokenizer
from scaler_wizard.recipe import Distil
from scaler_wizard.train import autocast, head_weight

NARROW = 2**16
"""Vocabulary whose token numbers fit two bytes."""
LIKELIEST_NARROW, LIKELIEST_WIDE = 64, 48
"""Tokens that are kept of a view: 256 bytes in a narrow vocabulary, 288 in a wide one."""


def same_vocabulary(student: Any, teacher: Any, name: str) -> None:
    """Refuse a teacher whose token numbers mean something else."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sum(theirs.get(token) != number for token, number in ours.items())
    raise ScalerError(
        f"heal.distil.teacher: {name}: another vocabulary ({differing} of {len(ours)} tokens differ)",
        "choose a teacher with the model's own tokenizer, such as `base`, or a larger model of its family",
    )


def hire(settings: Distil, *, folder: Path, student: Any, cache: Path) -> Teacher:
    """The teacher in `folder`, for a student with this tokenizer. Raises ScalerError where they do not fit."""
    same_vocabulary(student, load_tokenizer(folder), settings.teacher)
    model = load_model(folder).requires_grad_(False)
    if getattr(model.config, "final_logit_softcapping", None):
        raise ScalerError(f"heal.distil.teacher: {settings.teacher}: its logits are capped", "choose a teacher without")
    return Teacher(
        model=model,
        settings=settings,
        identity=f"{_weights_hash(folder)} {model.dtype}",
        window=read_architecture(folder).native_context,
        folder=cache,
        compute=model.dtype,
    )


def _weights_hash(folder: Path) -> str:
    hasher = blake3()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        hasher.update_mmap(file)
    return hasher.hexdigest()


@dataclass
class Teacher:
    """A frozen model that is asked for its view of every piece that fits its window."""

    model: Any
    settings: Distil
    identity: str
    """Hash of its weights: another teacher's views are never read."""
    window: int
    """Longest piece that it reads well."""
    folder: Path
    """Where its views are kept."""
    compute: torch.dtype = torch.float32
    asked: int = 0
    """Tokens that it read in this process; 0 where everything had been kept."""
    told: int = 0
    """Tokens that it has said something of."""
    _unsaid: float = 0.0
    """Probability, summed over these, of tokens that are kept only together."""
    _store: sqlite3.Connection | None = field(default=None, repr=False)
    _last: tuple[Batch, torch.Tensor, Inside] | None = field(default=None, repr=False)
    """What it made of the row that it read last, where its blocks are looked at."""

    def teaches(self, batch: Batch) -> torch.Tensor:
        """Which tokens of a row it may say something of: (tokens,) booleans."""
        found = []
        for positions in batch.positions[0].split(list(batch.pieces)):
            plain = int(positions[-1] - positions[0]) == len(positions) - 1 and len(positions) <= self.window
            found.append(torch.full((len(positions),), plain))
        return torch.cat(found)

    def view(self, batch: Batch, places: torch.Tensor) -> View:
        """Its view at `places` (indices into the row) of a batch."""
        last = self._last
        rows = self._closed(last[1]) if last is not None and last[0] is batch else self._rows(self._pieces(batch))
        numbers = self.teaches(batch).cumsum(0)[places] - 1  # a taught token's row
        return self._opened(rows[numbers].to(self.model.device))

    def inside(self, batch: Batch, blocks: Sequence[int]) -> Inside:
        """What these blocks of it make of the pieces that it reads, end to end; the view comes from the same pass."""
        found: Inside
        states, found = self._read(self._pieces(batch), blocks)
        self._last = (batch, states, found)
        return found

    def imitation(self, student: Any, *, named: bool) -> Imitation:
        """How a student's blocks learn from its blocks; `named`: those pairs that the recipe names."""
        ours, theirs = len(student.layers), len(self.model.model.layers)
        pairs = pairs_of(self.settings, ours=ours, theirs=theirs, named=named)
        sizes = {"ours": student.config.hidden_size, "theirs": self.model.config.hidden_size}
        made: Imitation = Imitation(self.settings, pairs, **sizes).to(self.model.device)
        return made

    def _pieces(self, batch: Batch) -> list[Any]:
        """The pieces of a row that it may say something of."""
        pieces, taught = (row.split(list(batch.pieces)) for row in (batch.ids[0], self.teaches(batch)))
        return [piece.numpy().astype(np.int32) for piece, fits in zip(pieces, taught, strict=True) if fits[0]]

    def _rows(self, pieces: Sequence[Any]) -> torch.Tensor:
        """(tokens, bytes) of all pieces, asked for where they are not kept."""
        keys = [blake3(piece.tobytes()).digest() for piece in pieces]
        found = {key: row for key in keys if (row := self._kept(key)) is not None}
        missing = {key: piece for key, piece in zip(keys, pieces, strict=True) if key not in found}
        if missing:
            found |= self._asked(missing)
        rows = [
            np.frombuffer(found[key], np.uint8).reshape(len(piece), -1) for key, piece in zip(keys, pieces, strict=True)
        ]
        return torch.from_numpy(np.concatenate(rows))

    @torch.no_grad()
    def _read(self, pieces: Sequence[Any], blocks: Sequence[int] = ()) -> tuple[torch.Tensor, Inside]:
        """Its last hidden states (tokens, hidden) of pieces end to end, and what some blocks did."""
        lengths = tuple(len(piece) for piece in pieces)
        ids = torch.from_numpy(np.concatenate(list(pieces)).astype(np.int64))[None]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        device = self.model.device
        how = {"position_ids": positions.to(device), "pieces": lengths, "use_cache": False}
        with (
            by_piece(self.model),
            autocast(device, self.compute),
            watched(self.model.model.layers, blocks) as inside,
        ):
            states = self.model.model(input_ids=ids.to(device), seen=inside.attended, **how).last_hidden_state[0]
        self.asked += len(states)
        return states / getattr(self.model.config, "logits_scaling", 1.0), inside

    def _asked(self, missing: dict[bytes, Any]) -> dict[bytes, bytes]:
        ordered = sorted(missing.items(), key=lambda pair: -len(pair[1]))
        lengths = [len(piece) for _, piece in ordered]
        rows = self._closed(self._read([piece for _, piece in ordered])[0]).cpu().numpy()
        found = {
            key: part.tobytes() for (key, _), part in zip(ordered, np.split(rows, np.cumsum(lengths)[:-1]), strict=True)
        }
        if self.settings.keep != "nothing":
            with self._database() as store:
                store.executemany("INSERT OR IGNORE INTO views VALUES (?, ?)", found.items())
        return found

    # -- what is kept of a token ---------------------------------------------------------------------------------------

    @property
    def likeliest(self) -> int:
        """How many of its likeliest tokens are kept."""
        vocabulary = len(head_weight(self.model))
        return min(vocabulary - 1, LIKELIEST_NARROW if vocabulary <= NARROW else LIKELIEST_WIDE)

    @torch.no_grad()
    def _closed(self, states: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, bytes)."""
        if self.settings.keep != "likeliest":
            return states.to(torch.bfloat16).contiguous().view(torch.uint8)
        found = []
        for part in states.split(CHUNK):
            logits = functional.linear(part.to(self.compute), head_weight(self.model).to(self.compute)).float()
            log_q, tokens = functional.log_softmax(logits / self.settings.temperature, dim=-1).topk(self.likeliest)
            found.append(torch.cat([self._numbers(tokens), log_q.to(torch.float16).view(torch.uint8)], dim=1))
        return torch.cat(found)

    def _numbers(self, tokens: torch.Tensor) -> torch.Tensor:
        narrow = len(head_weight(self.model)) <= NARROW
        return tokens.to(torch.uint16 if narrow else torch.int32).contiguous().view(torch.uint8)

    def _opened(self, rows: torch.Tensor) -> View:
        """(tokens, bytes) -> the view."""
        temperature = self.settings.temperature
        if self.settings.keep != "likeliest":
            states = rows.contiguous().view(torch.bfloat16)
            head = head_weight(self.model).to(self.compute)
            return Hidden(states, head, temperature=temperature, kind=self.settings.divergence)
        width = rows.shape[1] - 2 * self.likeliest
        numbers = rows[:, :width].contiguous().view(torch.uint16 if width == 2 * self.likeliest else torch.int32)
        log_q = rows[:, width:].contiguous().view(torch.float16)
        self.told += len(rows)
        self._unsaid += float((1 - log_q.float().exp().sum(dim=1)).clamp_min(0).sum())
        return Likeliest(numbers, log_q)

    def account(self) -> str:
        """What it cost, and what is lost of what it knows, in a sentence."""
        kept = f"The teacher read {self.asked} tokens; what it had read before was still there."
        if not self.told:
            return kept
        share = self._unsaid / self.told
        return (
            f"{kept} Its {self.likeliest} likeliest tokens are kept one by one, {share:.2%} of its probability is not."
        )

    # -- where it is kept ----------------------------------------------------------------------------------------------

    def _kept(self, key: bytes) -> bytes | None:
        if self.settings.keep == "nothing":
            return None
        row = self._database().execute("SELECT view FROM views WHERE piece = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def _database(self) -> sqlite3.Connection:
        if self._store is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            how = f"{self.settings.keep}-{self.settings.temperature:g}-{self.likeliest}"
            name = blake3(f"{self.identity} {how}".encode()).hexdigest(16)
            self._store = sqlite3.connect(self.folder / f"{name}.db")
            self._store.execute("PRAGMA journal_mode = WAL")
            self._store.execute(
                "CREATE TABLE IF NOT EXISTS views (piece BLOB PRIMARY KEY, view BLOB NOT NULL) WITHOUT ROWID"
            )
        return self._store
