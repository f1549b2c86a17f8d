"""The human contract, version 1.0: what a run promises to the person who signed it, in numbers it cannot exceed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from blake3 import blake3
from pydantic import Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.record import Record, to_json

VERSION = "1.0"

TEXT = """\
1. A run never uses more than {memory_share:.0%} of the device's memory.
2. The context window never grows more than {context_jump:g}x in one step without your approval.
3. Before each gate you hear one sentence that says what was measured and what comes next.
4. You have {response_window_sec} seconds to answer. No answer means PAUSED: never aborted, never assumed.
5. Every phase that passed its gate is a checkpoint.
6. You can go back to any earlier phase in less than {rollback_sec:g} seconds, and undo that as well.
"""


class Contract(Record):
    """The limits that a person signs; a recipe may tighten them and never widen them."""

    version: Literal["1.0"] = "1.0"
    """Version of this text; a run of another version refuses to start."""
    memory_share: Annotated[float, Field(gt=0, le=0.90)] = 0.90
    """Share of the device's memory that a run may use."""
    context_jump: Annotated[float, Field(gt=1, le=2)] = 2.0
    """Largest growth of the context window in one step without approval."""
    response_window_sec: Annotated[int, Field(ge=30, le=600)] = 120
    """Seconds that a gate waits for an answer before the run pauses."""
    rollback_sec: Annotated[float, Field(gt=0, le=30)] = 30.0
    """Longest time a rollback may take."""

    def text(self) -> str:
        """The contract in prose, with its numbers."""
        return TEXT.format(**self.model_dump())


class Signature(Record):
    """Who agreed, when, to which words."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    """Name of the person who signed."""
    time: datetime
    """When, with time zone."""
    text_hash: str
    """blake3 of the numbers and the prose."""


class SignedContract(Record):
    """A contract with the signature that makes it valid."""

    contract: Contract
    """The terms."""
    signature: Signature
    """Who agreed to them."""


def sign(contract: Contract, name: str, *, now: datetime) -> SignedContract:
    """Sign `contract` as `name`; an empty name is no signature."""
    if not name.strip():
        raise ScalerError("the human contract is not signed", 'sign it with your name: --sign "Your Name"')
    return SignedContract(
        contract=contract, signature=Signature(name=name.strip(), time=now, text_hash=text_hash(contract))
    )


def read_signed(data: Mapping[str, Any], name: str = "contract.yaml") -> SignedContract:
    """Accept a contract from a file: right version, signed, and signed for exactly these words."""
    terms = data.get("contract")
    version = terms.get("version") if isinstance(terms, Mapping) else None
    if version != VERSION:
        raise ScalerError(
            f"{name}: contract version {version!r}; this release works under {VERSION}",
            f"sign version {VERSION} again: scaler run ... --sign NAME",
        )
    if not data.get("signature"):
        raise ScalerError(f"{name}: the human contract is not signed", 'sign it with your name: --sign "Your Name"')
    signed = SignedContract.read(data, name)
    if signed.signature.text_hash != text_hash(signed.contract):
        raise ScalerError(f"{name}: the contract was changed after it was signed", "read it and sign it again")
    return signed


def text_hash(contract: Contract) -> str:
    """Fingerprint of every number and every word."""
    return blake3((to_json(contract) + contract.text()).encode()).hexdigest()
