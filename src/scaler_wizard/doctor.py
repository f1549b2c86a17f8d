"""What this machine has, what that is enough for, what is missing and how to get it; in less than a second, no torch.

Not done: the package index and the hub are not asked, since a check that waits for a network is a check nobody runs.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from scaler_wizard.architecture import Blueprint
from scaler_wizard.contract import Contract
from scaler_wizard.estimate import PROCESS_BYTES, training_bytes
from scaler_wizard.fetch import cache_folder
from scaler_wizard.hardware import GIB, Hardware, detect, existing
from scaler_wizard.phases import Train

NEEDED = ("transformers", "peft", "safetensors", "tokenizers")
PROBE_SECONDS = 0.15
PROBE_PIECE = 4 * 2**20
LEAST_DISK = GIB
WINDOWS = (32768, 8192, 2048)
SHAPES = (  # parameters, layers, hidden, heads, key/value heads, neurons, vocabulary: of Llama-type models people use
    ("135M", 30, 576, 9, 3, 1536, 49152),
    ("360M", 32, 960, 15, 5, 2560, 49152),
    ("1.1B", 22, 2048, 32, 4, 5632, 32000),
    ("1.7B", 24, 2048, 32, 32, 8192, 49152),
    ("3.1B", 36, 2048, 16, 4, 11008, 128256),
    ("8B", 32, 4096, 32, 8, 14336, 128256),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    good: bool
    what: str
    found: str
    cure: str | None = None
    """What to do about it, or to get more; None where there is nothing to do."""


def findings(runs: Path) -> list[Finding]:
    """Everything that decides what can be done here; `runs` is the folder of all runs."""
    machine = detect(runs)
    return [
        Finding(True, "python", f"{platform.python_version()} ({sys.executable})"),
        _processors(machine),
        _memory(machine),
        *_gpus(machine),
        _torch(machine),
        *_libraries(),
        _extras(),
        _disk(runs, machine),
        _cache(),
        *_meaning(machine),
    ]


# -- the machine -------------------------------------------------------------------------------------------------------


def _processors(machine: Hardware) -> Finding:
    sets = "instruction sets unknown" if machine.instructions is None else ", ".join(machine.instructions)
    name = machine.processor or "name unknown"
    return Finding(True, "processors", f"{machine.cpus}, {machine.cpu_basis}: {name}; {sets or 'no fast arithmetic'}")


def _memory(machine: Hardware) -> Finding:
    found = f"{_gib(machine.ram_bytes)}, {machine.ram_basis}; {_gib(machine.free_bytes)} free"
    if machine.free_bytes >= 2 * PROCESS_BYTES:
        return Finding(True, "memory", found)
    return Finding(False, "memory", found, f"close other programs: a run begins at {_gib(2 * PROCESS_BYTES)}")


def _gpus(machine: Hardware) -> Iterator[Finding]:
    if not machine.gpus:
        yield Finding(True, "gpu", "none answers; everything runs on the processors")
    for gpu in machine.gpus:
        size = "shares the machine's memory" if gpu.vram_bytes is None else _gib(gpu.vram_bytes)
        yield Finding(True, "gpu", f"{gpu.name}, {size} (says {gpu.basis})")


def _disk(runs: Path, machine: Hardware) -> Finding:
    folder = existing(runs)
    try:
        speed = f"{write_speed(folder) / 1e6:.0f} MB/s written and flushed"
    except OSError as error:
        return Finding(False, "disk", f"{folder}: {error.strerror}", "choose another folder: --runs DIR")
    found = f"{_gib(machine.disk_free_bytes)} free in {folder}, {speed}"
    if machine.disk_free_bytes >= LEAST_DISK:
        return Finding(True, "disk", found)
    return Finding(False, "disk", found, "make room, or choose another folder: --runs DIR")


def write_speed(folder: Path, *, limit_s: float = PROBE_SECONDS) -> float:
    """Bytes per second that reach the disk in `folder`; the probe's file is gone afterwards. Raises OSError."""
    piece, written = os.urandom(PROBE_PIECE), 0
    with tempfile.TemporaryFile(dir=folder) as file:
        begun = time.perf_counter()
        while not written or time.perf_counter() - begun < limit_s:
            written += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return written / (time.perf_counter() - begun)


def _cache() -> Finding:
    folder = cache_folder()
    place = existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding(False, "cache", f"{folder} cannot be written", "choose another: SCALER_CACHE=DIR")
    held = "empty" if not folder.exists() else _gib(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))
    return Finding(True, "cache", f"{folder}: {held}")


# -- what is installed -------------------------------------------------------------------------------------------------


def _torch(machine: Hardware) -> Finding:
    try:
        number = version("torch")
    except PackageNotFoundError:
        return Finding(False, "torch", "not installed", "pip install torch")
    built = torch_build()
    found = f"{number}, built for {built or 'an unknown device'}"
    vendor = machine.gpus[0].vendor if machine.gpus else None
    wanted = {"nvidia": "CUDA", "amd": "ROCm"}.get(vendor or "")
    if wanted and built is not None and wanted not in built:
        cure = f"the GPU stays idle: install torch for {wanted}, see https://pytorch.org/get-started/locally"
        return Finding(False, "torch", found, cure)
    return Finding(True, "torch", found)


def torch_build() -> str | None:
    """What the installed torch was built for, read from its version file: importing it takes seconds."""
    found = find_spec("torch")
    file = Path(found.origin).parent / "version.py" if found is not None and found.origin else None
    if file is None or not file.is_file():
        return None
    text = file.read_text(encoding="utf-8")
    for key, name in (("cuda", "CUDA"), ("hip", "ROCm")):
        if built := re.search(rf"^{key}\b[^=]*= '([^']+)'", text, re.M):
            return f"{name} {built[1]}"
    return "Apple's GPU and processors" if sys.platform == "darwin" else "processors only"


def _libraries() -> Iterator[Finding]:
    versions = {name: _version(name) for name in NEEDED}
    missing = [name for name, number in versions.items() if number is None]
    found = ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())
    yield Finding(not missing, "libraries", found, f"pip install {' '.join(missing)}" if missing else None)


def _extras() -> Finding:
    """Optional parts, by what the installed package itself says about them."""
    try:
        listed = requires("scaler-wizard") or []
    except PackageNotFoundError:
        return Finding(True, "extras", "unknown: running from a source tree", "pip install -e .")
    parts: dict[str, list[str]] = {}
    for line in listed:
        if match := re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line):
            parts.setdefault(match[2], []).append(match[1])
    parts.pop("dev", None)
    missing = [name for name, packages in parts.items() if any(_version(package) is None for package in packages)]
    there = [name for name in parts if name not in missing]
    cure = f'where you need them: pip install "scaler-wizard[{",".join(missing)}]"' if missing else None
    return Finding(True, "extras", f"{_listed(there)} installed; {_listed(missing)} not", cure)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# -- what it is enough for ---------------------------------------------------------------------------------------------


def _meaning(machine: Hardware) -> Iterator[Finding]:
    limit = int((machine.vram_bytes or machine.ram_bytes) * Contract().memory_share)
    trained = largest_trained(limit, has_bfloat16=machine.has_bfloat16)
    if trained:
        words = "; ".join(f"up to {name} at {window // 1024}K" for window, name in trained)
        yield Finding(True, "training", f"adapters (LoRA) for models {words}, one window at a time, by estimate")
    else:
        cure = "the embedded model and ones like it still train; or use a machine with more memory"
        yield Finding(False, "training", f"{_gib(limit)} are too little for adapters (LoRA) of a 135M model", cure)
    half = max(0, machine.disk_free_bytes - LEAST_DISK) // 2
    yield Finding(
        True, "growth", f"of models up to {half / 1e9:.1f}B parameters after growth: it streams, disk decides"
    )


def largest_trained(limit: int, *, has_bfloat16: bool) -> list[tuple[int, str]]:
    """(window, size): the largest Llama-type model whose adapters train in `limit` bytes, by the plan's estimate."""
    found, compute = [], "bfloat16" if has_bfloat16 else "float32"
    for window in WINDOWS:
        train = _adapters(window, compute)
        fitting = [name for name, *shape in SHAPES if training_bytes(_llama(shape), train) <= limit]
        if fitting:
            found.append((window, fitting[-1]))
    return found


def _llama(shape: Sequence[int]) -> Blueprint:
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    config = dict(zip((*keys, "vocab_size"), shape, strict=True))
    return Blueprint({"model_type": "llama", **config})


def _adapters(window: int, compute: str) -> Train:
    sizes = {"steps": 1, "windows_per_step": 1, "micro_batch": 1, "window": window, "evaluate_every": 1}
    return Train(train="lora", learning_rate=2e-4, warmup_steps=0, checkpointing=True, compute=compute, **sizes)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
