"""One hash for a whole model: over the names and hashes of its configuration and weights."""

from __future__ import annotations

from blake3 import blake3

from scaler_wizard.architecture import Architecture
from scaler_wizard.files import file_hash


def fingerprint_of(architecture: Architecture) -> str:
    """blake3 over the names and hashes of configuration and weights."""
    files = {architecture.folder / "config.json", *(tensor.file for tensor in architecture.tensors.values())}
    text = "\n".join(f"{file.name} {file_hash(file)}" for file in sorted(files))
    return blake3(text.encode()).hexdigest()
