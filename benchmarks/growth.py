"""Growth against the disk: wall time as a ratio to copying the output, and peak memory, side by side in one run.

    .venv/bin/python benchmarks/growth.py --work /tmp/growth --gigabytes 0.5 --rounds 3
    .venv/bin/python benchmarks/growth.py --mergekit /path/to/venv/bin/python     # also times mergekit where it can

`io` reads the input and writes as many bytes as the output has, in 256 KB pieces, without any arithmetic; `cp` is
`cp -r` of the output. `ours` is planning and writing in a fresh process; `process` adds the start of Python and its
imports, which do not depend on the model. Limits hold for `ours`, for 2.5 times `cp` with hashes, fsync and renames
where bytes only move, and for 64 MB of memory. Medians of the rounds. Preflight is everything before the first byte,
for three checkpoints; refusals are headers made to cost time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from peak import peak_bytes

from scaler_wizard.architecture import read_architecture, read_header
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import IdentityBlocks, WidenFfn, grow_program
from scaler_wizard.weights import check_disk

Result = TypeVar("Result")
HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY = 1024, 16, 4, 2816, 32000
CHILD = """
import json, os, sys, time
from pathlib import Path
from typing import Any, TypeVar
from pydantic import TypeAdapter
from scaler_wizard.architecture import read_architecture
from scaler_wizard.grow import Operator, grow_program
from scaler_wizard.weights import write
source, out, operators, safe = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4] == "safe"
started, used = time.perf_counter(), sum(os.times()[:4])
architecture = read_architecture(source)
program = grow_program(architecture, [TypeAdapter(Operator).validate_python(item) for item in operators], seed=1)
write(program, out, hash=safe, durable=safe, processes=int(sys.argv[5]))
seconds = {"wall": time.perf_counter() - started, "processor": sum(os.times()[:4]) - used}
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps(seconds | {"heavy": heavy}))
"""


@dataclass(frozen=True)
class Case:
    """One growth that is timed."""

    name: str
    operators: list[dict[str, object]]
    limit: float
    """Largest ratio that we accept, to `cp` for growth that only moves bytes, to `io` for the rest."""
    against: str


def cases(layers: int) -> list[Case]:
    """Half as many layers again, four experts, and each kind of width."""
    return [
        Case("depth", [{"op": "identity_blocks", "blocks": layers // 2}], 1.25, "cp"),
        Case("solar", [{"op": "stack_layers", "layers": layers * 3 // 2}], 1.25, "cp"),
        Case("experts", [{"op": "upcycle", "experts": 4}], 1.25, "cp"),
        Case("kv groups", [{"op": "add_kv_groups", "groups": 4}], 3.0, "io"),
        Case("ffn zero", [{"op": "widen_ffn", "size": FFN * 3 // 2, "split": "zero"}], 3.0, "io"),
        Case("ffn pairs", [{"op": "widen_ffn", "size": FFN * 3 // 2}], 3.0, "io"),
        Case("hidden", [{"op": "widen_hidden", "size": HIDDEN * 5 // 4}], 3.0, "io"),
        Case("clone", [{"op": "hyper_clone", "times": 2}], 3.0, "io"),
    ]


def main() -> int:
    """Make the model, time everything, print a table; 1 where a limit is broken."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    layers = _layers(options.gigabytes)
    source = options.work / f"source-{layers}"
    if not (source / "config.json").is_file():
        _make(source, layers)
    if options.make:
        return 0
    size = sum(file.stat().st_size for file in source.iterdir())
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} processors")
    print(f"Llama, bf16, {layers} layers, {size / 1e9:.2f} GB; our write in {options.processes} processes")
    print(f"medians of {options.rounds} rounds, seconds ({CLOCK[0]})\n")
    print(
        "| growth | out GB | io | cp | ours | process | ratio | limit | hash + fsync | ratio to cp | peak MB |\n"
        + "|---" * 11
        + "|"
    )
    chosen = [case for case in cases(layers) if not options.case or case.name in options.case]
    broken = [case.name for case in chosen if not _race(case, source, options)]
    broken += [] if _preflight(source, options.work) else ["preflight"]
    broken += [name for name in BOMBS if not _refusal(name, options.work / "bomb.safetensors")]
    if options.mergekit and not _mergekit(options.mergekit, source, options.work, layers):
        broken.append("mergekit")
    shutil.rmtree(options.work)
    print(f"\nabove the limit: {', '.join(broken)}" if broken else "\nall within their limits")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("growth-benchmark"), help="folder; removed at the end")
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="of our write")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="write it as --clock=processor")
    parser.add_argument("--case", action="append", help="only this one; repeat it")
    parser.add_argument("--make", action="store_true", help="only make the model, for a later run on a quiet machine")
    parser.add_argument("--mergekit", type=Path, help="python of an environment with mergekit")
    return parser.parse_args()


def _race(case: Case, source: Path, options: argparse.Namespace) -> bool:
    work, rounds = options.work, options.rounds
    times: dict[str, list[float]] = {way: [] for way in ("io", "cp", "ours", "process", "safe")}
    said: dict[str, Any] = {}
    for _ in range(rounds):
        for way, mode in (("ours", "fast"), ("safe", "safe")):
            out = _empty(work / "out")
            command = _command(case, source, out, mode, options)
            seconds, text = _timed(lambda command=command: subprocess.run(command, check=True, capture_output=True))
            said = json.loads(text.stdout)
            times[way].append(said[CLOCK[0]])
            if way == "ours":
                times["process"].append(seconds)
            assert not said["heavy"], said["heavy"]
        times["cp"].append(
            _timed(lambda: subprocess.run(["cp", "-r", work / "out", _gone(work / "copy")], check=True))[0]
        )
        total = sum(file.stat().st_size for file in (work / "out").iterdir())
        times["io"].append(_timed(lambda total=total: _io(source, work / "raw", total))[0])
    peak = peak_bytes(_command(case, source, _empty(work / "out"), "safe", options))
    median = {way: statistics.median(values) for way, values in times.items()}
    ratio, safe = median["ours"] / median[case.against], median["safe"] / median["cp"]
    print(
        f"| {case.name} | {total / 1e9:.2f} | {median['io']:.2f} | {median['cp']:.2f} | {median['ours']:.2f} "
        f"| {median['process']:.2f} "
        f"| {ratio:.2f} of {case.against} | {case.limit} | {median['safe']:.2f} | {safe:.2f} | {peak / 2**20:.0f} |",
        flush=True,
    )
    return ratio <= case.limit and peak <= 64 * 2**20 and (case.against == "io" or safe <= 2.5)


def _command(case: Case, source: Path, out: Path, mode: str, options: argparse.Namespace) -> list[str]:
    operators, processes = json.dumps(case.operators), str(options.processes)
    return [sys.executable, "-c", CHILD, str(source), str(out), operators, mode, processes]


def _preflight(source: Path, work: Path) -> bool:
    """Names, shapes, types, configuration against weights, layer lists, vocabulary, disk: of three checkpoints."""

    def check() -> None:
        for _ in range(3):
            program = grow_program(read_architecture(source), [IdentityBlocks(blocks=2), WidenFfn(size=FFN * 2)])
            check_disk(work / "out", program.bytes)

    seconds = statistics.median(_timed(check)[0] for _ in range(5))
    print(f"\npreflight of three checkpoints: {1000 * seconds:.0f} ms (limit 100)")
    return seconds <= 0.1


EMPTY = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
BOMBS: dict[str, bytes] = {
    "header of 2^40 bytes": b"",
    "230,000 tensors": b"{" + b",".join(EMPTY % number for number in range(230_000)) + b"}",
    "a name twice among 4,000": b"{" + b",".join(EMPTY % (number % 3_999) for number in range(4_000)) + b"}",
    "16 MB of brackets": b"[" * 16_000_000,
    "7 million axes": b'{"a":{"dtype":"F32","shape":[' + b"1," * 7_000_000 + b'1],"data_offsets":[0,0]}}',
    "overlapping tensors": json.dumps(
        {str(n): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in range(2_000)}
    ).encode(),
}
"""Headers that must be refused within 50 ms."""


def _refusal(name: str, file: Path) -> bool:
    header = BOMBS[name]
    file.write_bytes(struct.pack("<Q", len(header) or 2**40) + header + bytes(4))
    times = []
    for _ in range(3):
        started = CLOCKS[CLOCK[0]]()
        try:
            read_header(file)
        except ScalerError:
            times.append(CLOCKS[CLOCK[0]]() - started)
    assert len(times) == 3, f"{name} was not refused"
    print(f"refused: {name}: {1000 * statistics.median(times):.1f} ms (limit 50)")
    return statistics.median(times) <= 0.05


CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": lambda: sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ),
}
"""Wall time for a quiet machine; seconds of processor, of this process and its children, where others work as well."""
CLOCK = [name for name in CLOCKS if f"--clock={name}" in sys.argv] or ["wall"]


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    clock = CLOCKS[CLOCK[0]]
    started = clock()
    result = work()
    return clock() - started, result


def _io(source: Path, target: Path, total: int) -> None:
    piece = bytearray(256 * 1024)
    for file in source.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(piece):
                pass
    with target.open("wb", buffering=0) as stream:
        for _ in range(total // len(piece)):
            stream.write(piece)
    target.unlink()


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _gone(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


# -- a synthetic model ----------------------------------------------------------------------------------------------


def _shapes(layers: int) -> dict[str, list[int]]:
    kv, block = HIDDEN * KV_HEADS // HEADS, "model.layers.{}."
    shapes = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(layers):
        name = block.format(layer)
        shapes |= {
            name + "self_attn.q_proj.weight": [HIDDEN, HIDDEN],
            name + "self_attn.o_proj.weight": [HIDDEN, HIDDEN],
        }
        shapes |= {name + f"self_attn.{part}_proj.weight": [kv, HIDDEN] for part in "kv"}
        shapes |= {name + f"mlp.{part}_proj.weight": [FFN, HIDDEN] for part in ("gate", "up")}
        shapes |= {name + "mlp.down_proj.weight": [HIDDEN, FFN]}
        shapes |= {name + f"{part}_layernorm.weight": [HIDDEN] for part in ("input", "post_attention")}
    return shapes


def _layers(gigabytes: float) -> int:
    ends = sum(int(np.prod(shape)) for shape in _shapes(0).values())
    block = sum(int(np.prod(shape)) for shape in _shapes(1).values()) - ends
    return max(4, round((gigabytes * 1e9 / 2 - ends) / block / 4) * 4)


def _make(folder: Path, layers: int) -> Path:
    """Random bf16 weights in shards of about 130 MB."""
    _empty(folder)
    random = np.random.default_rng(0)
    shapes = list(_shapes(layers).items())
    groups = [shapes[start : start + 60] for start in range(0, len(shapes), 60)]
    names = {}
    for number, group in enumerate(groups):
        file = folder / f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        names |= {name: file.name for name, _ in group}
        _shard(file, group, random)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _shard(file: Path, group: list[tuple[str, list[int]]], random: np.random.Generator) -> None:
    header, place = {}, 0
    for name, shape in group:
        end = place + int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, shape in group:
            values = (random.standard_normal(int(np.prod(shape)), np.float32) * 0.02).view(np.uint32) >> 16
            stream.write(values.astype(np.uint16).tobytes())


# -- the peer -------------------------------------------------------------------------------------------------------


def _mergekit(python: Path, source: Path, work: Path, layers: int) -> bool:
    """mergekit's passthrough of the same layers as `solar`, beside ours with its start; 20 times is the bar."""
    half = layers * 3 // 4
    runs = [(0, half), (layers - half, layers)]
    slices = [f"  - sources: [{{model: {source}, layer_range: [{start}, {stop}]}}]" for start, stop in runs]
    recipe = work / "merge.yaml"
    recipe.write_text("slices:\n" + "\n".join(slices) + "\nmerge_method: passthrough\ndtype: bfloat16\n")
    out = _gone(work / "merged")
    command = [str(python.parent / "mergekit-yaml"), str(recipe), str(out), "--quiet", "--no-copy-tokenizer"]
    seconds, _ = _timed(lambda: subprocess.run(command, check=True, capture_output=True))
    version = [str(python), "-c", "import importlib.metadata as m; print(m.version('mergekit'))"]
    text = subprocess.run(version, check=True, capture_output=True, text=True).stdout.strip()
    solar = json.dumps([{"op": "stack_layers", "layers": layers * 3 // 2}])
    ours = [sys.executable, "-c", CHILD, str(source), str(_empty(work / "out")), solar, "fast", "1"]
    mine, _ = _timed(lambda: subprocess.run(ours, check=True, capture_output=True))
    same = _weights(out) == _weights(work / "out")
    print(f"\nmergekit {text}, the layers of `solar`: {seconds:.1f} s; ours, process and all, {mine:.2f} s: ", end="")
    print(f"{seconds / mine:.0f}x (limit 20); {'the same' if same else 'DIFFERENT'} numbers in every tensor")
    return same and seconds >= 20 * mine


def _weights(folder: Path) -> dict[str, str]:
    """A hash of every tensor's bytes."""
    found = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in read_header(file).items():
            with file.open("rb") as stream:
                stream.seek(tensor.start)
                found[name] = hashlib.blake2b(stream.read(tensor.end - tensor.start)).hexdigest()
    return found


if __name__ == "__main__":
    sys.exit(main())
