"""Merging against the disk and against mergekit: wall time and peak memory, side by side in one run.

    .venv/bin/python benchmarks/merge.py --work /tmp/merging --gigabytes 0.5 --rounds 3
    .venv/bin/python benchmarks/merge.py --mergekit /path/to/venv/bin/python     # also times mergekit, once a method

`io` reads the inputs and writes as many bytes as the output has, in 256 KB pieces, without any arithmetic. `ours` is
reading the recipe, preflight and writing in a fresh process; `process` adds the start of Python and its imports;
`safe` also hashes what is written and flushes it to the disk. Memory is that of a run of its own of `safe`, its forked
process included. Medians of the rounds; mergekit runs the very same YAML.
Seconds are wall time, for a quiet machine; `--cpu` takes CPU seconds, which other work on it disturbs less.
Limits hold for `ours` / `io`, for 64 MB of memory, and for mergekit / `process`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from growth import _empty, _gone, _layers, _make
from peak import peak_bytes

Result = TypeVar("Result")
MODELS = 2
CHILD = """
import os, sys, time, json
from pathlib import Path
from scaler_wizard.merging import prepare
from scaler_wizard.weights import write
recipe, out, safe, processes = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "safe", int(sys.argv[4])
clock = time.perf_counter if sys.argv[5] == "wall" else lambda: sum(os.times()[:4])  # of children, too
started = clock()
ready = prepare(recipe)
planned = clock()
write(ready.program, out, hash=safe, durable=safe, finite=safe, processes=processes)
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps({"plan": planned - started, "write": clock() - planned, "heavy": heavy}))
"""


@dataclass(frozen=True)
class Case:
    """One merge that is timed."""

    method: str
    base: bool
    each: dict[str, float]
    general: dict[str, float]
    limit: float | None
    """Largest ratio to `io` that we accept; None where none is set."""


CASES = [
    Case("linear", False, {"weight": 0.5}, {}, 2.5),
    Case("slerp", False, {}, {"t": 0.4}, 3.0),
    Case("task_arithmetic", True, {"weight": 0.5}, {}, None),
    Case("ties", True, {"weight": 0.5, "density": 0.5}, {}, 6.0),
    Case("dare_ties", True, {"weight": 0.5, "density": 0.5}, {}, 6.0),
    Case("della", True, {"weight": 0.5, "density": 0.5, "epsilon": 0.1}, {}, None),
    Case("breadcrumbs", True, {"weight": 0.5, "density": 0.5}, {}, None),
    Case("model_stock", True, {}, {}, None),
    Case("sce", True, {}, {"select_topk": 0.5}, None),
]
FASTER = 20.0
"""Than mergekit, everywhere."""


def main() -> int:
    """Make the models, time everything, print a table; 1 where a limit is broken."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    layers = _layers(options.gigabytes)
    base = _there(options.work / "base") or _make(options.work / "base", layers)
    folders = [options.work / f"tune-{number}" for number in range(MODELS)]
    tunes = [_there(folder) or _tuned(base, folder, number) for number, folder in enumerate(folders)]
    size = sum(file.stat().st_size for file in base.iterdir())
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} processors")
    if options.mergekit:
        print(_version(options.mergekit))
    print(
        f"Llama, bf16, {layers} layers, {size / 1e9:.2f} GB, {MODELS} models, {options.processes} processes, "
        f"{options.rounds} rounds, medians, {'CPU' if options.cpu else 'wall'} seconds\n"
    )
    print(
        "| method | io | ours | ratio | limit | process | safe | peak MB | mergekit | its peak MB | mergekit / ours |"
    )
    print("|---" * 11 + "|")
    chosen = [case for case in CASES if not options.only or case.method in options.only]
    broken = [case.method for case in chosen if not _race(case, base, tunes, options)]
    if not options.keep:
        shutil.rmtree(options.work)
    print(f"\noutside the limits: {', '.join(broken)}" if broken else "\nall within their limits")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("merge-benchmark"), help="folder; removed at the end")
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="as scaler merge does")
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--keep", action="store_true", help="leave the models for the next time")
    parser.add_argument("--only", nargs="*", help="methods")
    parser.add_argument("--mergekit", type=Path, help="python of an environment with mergekit")
    return parser.parse_args()


def _there(folder: Path) -> Path | None:
    """A model that an earlier run has left."""
    return folder if (folder / "config.json").is_file() else None


def _race(case: Case, base: Path, tunes: list[Path], options: argparse.Namespace) -> bool:
    work = options.work
    recipe = _recipe(case, base, tunes, work / "merge.yaml")
    inputs = [*([base] if case.base else []), *tunes]
    times: dict[str, list[float]] = {way: [] for way in ("io", "ours", "process", "safe")}
    for _ in range(options.rounds):
        for way in ("ours", "safe"):
            out = _empty(work / "out")
            command = _command(recipe, out, way, options)
            seconds, text = _timed(lambda command=command: _run(command), options)
            said: dict[str, Any] = json.loads(text.stdout)
            assert not said["heavy"], said["heavy"]
            times[way].append(said["plan"] + said["write"])
            if way == "ours":
                times["process"].append(seconds)
        total = sum(file.stat().st_size for file in (work / "out").iterdir())
        times["io"].append(_timed(lambda total=total: _io(inputs, work / "raw", total), options)[0])
    peak = peak_bytes(_command(recipe, _empty(work / "out"), "safe", options))
    median = {way: statistics.median(values) for way, values in times.items()}
    theirs, their_peak = _mergekit(recipe, options) if options.mergekit else (None, None)
    ratio = median["ours"] / median["io"]
    faster = theirs / median["process"] if theirs else None
    limit = "-" if case.limit is None else f"{case.limit:.1f}"
    print(
        f"| {case.method} | {median['io']:.2f} | {median['ours']:.2f} | {ratio:.2f} | {limit} "
        f"| {median['process']:.2f} | {median['safe']:.2f} | {peak / 2**20:.0f} | {_or_dash(theirs, '.1f')} "
        f"| {_or_dash(their_peak, '.0f')} | {_or_dash(faster, '.1f')} |",
        flush=True,
    )
    within = case.limit is None or ratio <= case.limit
    return within and peak <= 64 * 2**20 and (faster is None or faster >= FASTER)


def _command(recipe: Path, out: Path, way: str, options: argparse.Namespace) -> list[str]:
    clock = "cpu" if options.cpu else "wall"
    return [sys.executable, "-c", CHILD, str(recipe), str(out), way, str(options.processes), clock]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _recipe(case: Case, base: Path, tunes: list[Path], file: Path) -> Path:
    """mergekit's format, which both read."""
    models = "".join(f"  - model: {tune}\n    parameters: {json.dumps(case.each)}\n" for tune in tunes)
    if case.method == "slerp":
        models = "".join(f"  - model: {tune}\n" for tune in tunes) + f"base_model: {tunes[0]}\n"
    general = f"parameters: {json.dumps(case.general)}\n" if case.general else ""
    named = f"base_model: {base}\n" if case.base else ""
    file.write_text(f"merge_method: {case.method}\nmodels:\n{models}{named}{general}dtype: bfloat16\n")
    return file


def _timed(work: Callable[[], Result], options: argparse.Namespace) -> tuple[float, Result]:
    """Seconds, those of child processes too."""
    started, clock = os.times(), time.perf_counter()
    result = work()
    ended = os.times()
    cpu = sum(ended[:4]) - sum(started[:4])
    return cpu if options.cpu else time.perf_counter() - clock, result


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True)


def _io(inputs: list[Path], target: Path, total: int) -> None:
    piece = bytearray(256 * 1024)
    for folder in inputs:
        for file in folder.glob("*.safetensors"):
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(piece):
                    pass
    with target.open("wb", buffering=0) as stream:
        for _ in range(total // len(piece)):
            stream.write(piece)
    target.unlink()


def _tuned(base: Path, folder: Path, seed: int) -> Path:
    """The base with normal noise of 0.002 on every number, as a fine-tune would change it."""
    _empty(folder)
    random = np.random.default_rng(seed + 1)
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
            continue
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        with (folder / file.name).open("wb") as stream:
            stream.write(raw[:start])
            for place in range(start, len(raw), 2**22):
                stored = np.frombuffer(raw[place : place + 2**22], "<u2").astype(np.uint32) << 16
                values = stored.view(np.float32) + random.standard_normal(stored.size, np.float32) * np.float32(0.002)
                stream.write(((values.view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes())
    return folder


def _mergekit(recipe: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds and peak megabytes of the same merge."""
    out = _gone(options.work / "theirs")
    program = str(options.mergekit.parent / "mergekit-yaml")
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", script, program, str(recipe), str(out), "--quiet", "--no-copy-tokenizer"]
    seconds, answer = _timed(lambda: _run(command), options)
    shutil.rmtree(out)
    return seconds, int(answer.stdout) / 1024


def _version(python: Path) -> str:
    script = "import importlib.metadata as m; print('mergekit', m.version('mergekit'), 'torch', m.version('torch'))"
    return subprocess.run([str(python), "-c", script], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
