"""What this machine has: processors, memory, disk, GPU; what cannot be found out is None. No torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import psutil

from scaler_wizard import cgroups
from scaler_wizard.gpus import Gpu, gpus, installed
from scaler_wizard.record import Record

GIB = 2**30
ROOT = Path("/")
INSTRUCTIONS = {  # kernel's name: the usual one; those that decide how fast numbers are multiplied
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-bf16",
    "amx_bf16": "AMX-bf16",
    "amx_int8": "AMX-int8",
    "asimd": "NEON",
    "sve": "SVE",
    "i8mm": "I8MM",
    "bf16": "BF16",
}


BFLOAT16 = frozenset({"AVX512-bf16", "AMX-bf16", "BF16"})
"""Instruction sets for products in bfloat16."""


class Hardware(Record):
    """A machine as a plan sees it."""

    cpus: int
    """Processors that this process may use."""
    cpu_basis: str = "given"
    """Where that number comes from."""
    processor: str | None = None
    """Name of the processor; None where nothing says."""
    instructions: tuple[str, ...] | None = None
    """Instruction sets for fast arithmetic; None where nothing says."""
    ram_bytes: int
    """Memory this process may use: the machine's, or its container's limit where that is lower."""
    ram_basis: str
    """Where that number comes from."""
    free_bytes: int
    """Memory that is free now."""
    gpu: str | None
    """Name of the largest GPU; None where none answers."""
    vram_bytes: int | None
    """Its memory; None where no GPU answers, or where it shares the machine's."""
    gpus: tuple[Gpu, ...] = ()
    """Every GPU that answers, the largest first."""
    disk_free_bytes: int
    """Free space where runs are written."""

    @property
    def has_bfloat16(self) -> bool:
        """Whether something here is made for products in bfloat16; other processors do them, slower than in float32."""
        return bool(self.vram_bytes) or not BFLOAT16.isdisjoint(self.instructions or ())


def detect(where: Path, *, root: Path = ROOT) -> Hardware:
    """Look at the machine; `where` is the folder that runs are written to (or its nearest existing parent).

    `root` is where the kernel's files (`/proc`, `/sys`) hang.
    """
    cpus, cpu_basis = _cpus(root)
    processor, instructions = _processor(root)
    ram, ram_basis, free = _ram(root)
    cards = installed() if root == ROOT else gpus(root)
    return Hardware(
        cpus=cpus,
        cpu_basis=cpu_basis,
        processor=processor,
        instructions=instructions,
        ram_bytes=ram,
        ram_basis=ram_basis,
        free_bytes=free,
        gpu=cards[0].name if cards else None,
        vram_bytes=cards[0].vram_bytes if cards else None,
        gpus=cards,
        disk_free_bytes=shutil.disk_usage(existing(where)).free,
    )


def _cpus(root: Path) -> tuple[int, str]:
    if hasattr(os, "sched_getaffinity"):
        cpus, basis = len(os.sched_getaffinity(0)), "those this process may run on"
    else:
        cpus, basis = os.cpu_count() or 1, "the machine's"
    quota = cgroups.processor_quota(root)
    return (quota.value, quota.basis) if quota is not None and quota.value < cpus else (cpus, basis)


def _ram(root: Path) -> tuple[int, str, int]:
    memory = psutil.virtual_memory()
    limit = cgroups.memory_limit(root)
    if limit is None or limit.value >= memory.total:
        return memory.total, "the machine's memory", memory.available
    used = cgroups.memory_used(limit)
    free = limit.value if used is None else max(0, limit.value - used)
    return limit.value, limit.basis, min(memory.available, free)


@cache
def processor_has_bfloat16(root: Path = ROOT) -> bool | None:
    """Whether the processor has instructions for products in bfloat16; None where nothing says."""
    instructions = _processor(root)[1]
    return None if instructions is None else not BFLOAT16.isdisjoint(instructions)


def _processor(root: Path) -> tuple[str | None, tuple[str, ...] | None]:
    """Name and instruction sets, from the kernel."""
    if platform.system() == "Darwin" and root == ROOT:
        return _sysctl("machdep.cpu.brand_string"), _apple_instructions()
    try:
        rows = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None, None
    fields = {key.strip().lower(): value.strip() for key, _, value in (row.partition(":") for row in reversed(rows))}
    flags = (fields.get("flags") or fields.get("features") or "").split()
    known = tuple(name for flag, name in INSTRUCTIONS.items() if flag in flags)
    return fields.get("model name"), known if flags else None


def _apple_instructions() -> tuple[str, ...] | None:
    if platform.machine() != "arm64":
        leaves = (_sysctl("machdep.cpu.features"), _sysctl("machdep.cpu.leaf7_features"))
        flags = " ".join(leaf for leaf in leaves if leaf).lower().split()
        return tuple(name for flag, name in INSTRUCTIONS.items() if flag in flags) if flags else None
    asked = {"NEON": "hw.optional.neon", "BF16": "hw.optional.arm.FEAT_BF16", "I8MM": "hw.optional.arm.FEAT_I8MM"}
    answers = {name: _sysctl(key) for name, key in asked.items()}
    return tuple(name for name, answer in answers.items() if answer == "1") if any(answers.values()) else None


def _sysctl(key: str) -> str | None:
    try:
        return subprocess.run(
            ["sysctl", "-n", key], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no such key on this chip
        return None


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
