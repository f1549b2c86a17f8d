"""Which GPUs answer: NVIDIA by NVML (else by nvidia-smi), AMD by the kernel's files, Apple by sysctl. No torch.

Not covered: Intel GPUs, and slices of a GPU (MIG), which NVML lists as the whole card.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.record import Record

AMD_VENDOR = "0x1002"


class Gpu(Record):
    """One GPU."""

    vendor: Literal["nvidia", "amd", "apple"]
    """Who made it."""
    name: str
    """Its name, by its driver."""
    vram_bytes: int | None
    """Its own memory; None where it shares the machine's."""
    basis: str
    """Who says so."""


def gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Every GPU that answers and that this process may use, the largest first."""
    found = [*_nvidia(), *_amd(root), *_apple()]
    return tuple(sorted(found, key=lambda gpu: -(gpu.vram_bytes or 0)))


installed = cache(gpus)
"""The same, asked once: GPUs do not come and go while a process lives."""


# -- NVIDIA ------------------------------------------------------------------------------------------------------------


def _nvidia() -> list[Gpu]:
    found = _by_nvml()
    if found is None:
        found = _by_smi()
    return [gpu for number, (uuid, gpu) in enumerate(found) if _visible(number, uuid)]


def _by_nvml() -> list[tuple[str, Gpu]] | None:
    """None where the library does not load: then nvidia-smi may still answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return [_nvml_gpu(pynvml, number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, number: int) -> tuple[str, Gpu]:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    name, total = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle).total
    return str(nvml.nvmlDeviceGetUUID(handle)), Gpu(vendor="nvidia", name=name, vram_bytes=int(total), basis="NVML")


def _by_smi() -> list[tuple[str, Gpu]]:
    answer = _ask(["nvidia-smi", "--query-gpu=uuid,memory.total,name", "--format=csv,noheader,nounits"])
    rows = [[part.strip() for part in line.split(",", 2)] for line in (answer or "").splitlines()]
    return [
        (row[0], Gpu(vendor="nvidia", name=row[2], vram_bytes=int(row[1]) * 2**20, basis="nvidia-smi"))
        for row in rows
        if len(row) == 3 and row[1].isdigit()
    ]


def _visible(number: int, uuid: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets this process see it; the driver's order is taken as CUDA's."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return True
    wanted = [part.strip() for part in chosen.split(",")]
    return any(part == str(number) or (part.startswith("GPU-") and uuid.startswith(part)) for part in wanted)


# -- AMD and Apple -----------------------------------------------------------------------------------------------------


def _amd(root: Path) -> list[Gpu]:
    """By the amdgpu driver's files (kernel documentation, gpu/amdgpu/driver-misc)."""
    found = []
    for device in sorted((root / "sys/class/drm").glob("card[0-9]*/device")):
        vendor, total = _text(device / "vendor"), _text(device / "mem_info_vram_total")
        if vendor == AMD_VENDOR and total is not None and total.isdigit():
            name = _text(device / "product_name") or "AMD GPU"
            found.append(Gpu(vendor="amd", name=name, vram_bytes=int(total), basis="the amdgpu driver"))
    return found


def _apple() -> list[Gpu]:
    """Apple's chips share the machine's memory with their GPU, so it has no size of its own."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    chip = _ask(["sysctl", "-n", "machdep.cpu.brand_string"])
    return [Gpu(vendor="apple", name=chip.strip(), vram_bytes=None, basis="sysctl")] if chip else []


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:  # absent: no such card, or a driver that does not say
        return None


def _ask(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):  # not installed, or it does not answer
        return None
