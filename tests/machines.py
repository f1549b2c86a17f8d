"""Machines to plan for, given by their memory."""

from __future__ import annotations

from scaler_wizard.hardware import GIB, Hardware


def machine(ram: int, vram: int = 0, *, disk: int = 500, cpus: int = 4) -> Hardware:
    """A machine of `ram` and `vram` GiB."""
    return Hardware(
        cpus=cpus,
        ram_bytes=ram * GIB,
        ram_basis="given",
        free_bytes=ram * GIB * 3 // 4,
        gpu="a GPU" if vram else None,
        vram_bytes=vram * GIB if vram else None,
        disk_free_bytes=disk * GIB,
    )
