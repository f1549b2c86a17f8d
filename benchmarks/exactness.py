"""Growth on a real model: what each operator does to its logits, in fp32, as stored, and with a key/value cache.

    .venv/bin/python benchmarks/exactness.py --model smollm2 --work /tmp/exactness
    .venv/bin/python benchmarks/exactness.py --kernels ordered    # sums in the order of the index: AVX2, no AMX tiles

Each growth is written and proved as `scaler grow` does it; the table is what the proofs say. `fp32` compares in fp32
(before rounding, where rescaled weights were rounded to 16 bits); `stored` is the divergence of the grown model, run
in the type it is stored in, from the base in fp32, over the same divergence of the base itself. Exit code 1 where a bar
is broken: equal bits for `BITS` (with ordered kernels), else 1e-3 and 1e-6 nats in fp32, a ratio of 1.5 as stored.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from pathlib import Path

import torch
import transformers

from scaler_wizard.architecture import Architecture, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    AddKvGroups,
    AddQueryHeads,
    GrowthOperator,
    GrowVocabulary,
    HyperClone,
    IdentityBlocks,
    SharedExpert,
    SplitIntoExperts,
    SplitKvHeads,
    Upcycle,
    WidenFfn,
    WidenHidden,
    grow_program,
    promise,
)
from scaler_wizard.models import resolve
from scaler_wizard.oneshot import prompts
from scaler_wizard.prove import Proof, prove
from scaler_wizard.target import solve
from scaler_wizard.weights import write

BITS = ("identity blocks", "FFN x1.5, zero", "key/value group", "split key/value heads", "4 equal experts, router at 0")
"""Cases that change not one bit, in fp32 and as stored, where kernels add in the order of the index."""
ORDERED = {"MKL_CBWR": "AVX2,STRICT", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""The fastest kernels (AVX-512 of MKL, AMX tiles) cut a longer sum at other places: zeros then change the last bits."""


def cases(base: Architecture) -> dict[str, list[GrowthOperator]]:
    """One growth of each kind, and two that the solver composes."""
    wide = base.ffn * 3 // 2 // 2 * 2
    return {
        "identity blocks": [IdentityBlocks(blocks=5)],
        "FFN x1.5, zero": [WidenFfn(size=wide, split="zero")],
        "FFN x1.5, pairs": [WidenFfn(size=wide)],
        "FFN x1.5, Net2Net": [WidenFfn(size=wide, split="net2net")],
        "key/value group": [AddKvGroups(groups=1)],
        "query head per group": [AddQueryHeads(per_group=1)],
        "split key/value heads": [SplitKvHeads(heads=base.heads)],
        "hidden x1.25, zero lanes": [WidenHidden(size=base.hidden * 5 // 4)],
        "hidden x2, zero lanes": [WidenHidden(size=base.hidden * 2)],
        "cloned x2, noise 10 dB": [HyperClone(times=2)],
        "4 equal experts": [Upcycle(experts=4, active=2)],
        "4 equal experts, router at 0": [Upcycle(experts=4, active=2, router_noise=0)],
        "cut into 4 experts": [SplitIntoExperts(experts=4)],
        "shared expert + 4 new": [SharedExpert(experts=4, size=base.ffn // 4)],
        "vocabulary + 64": [GrowVocabulary(size=base.vocabulary + 64)],
        "solver: 1.5x": list(solve(base, base.parameters * 3 // 2).operators),
        "solver: 3x": list(solve(base, base.parameters * 3).operators),
    }


def main() -> int:
    """Grow, prove, print; 1 where a bar is broken."""
    options = _options()
    if options.kernels == "ordered" and any(os.environ.get(key) != value for key, value in ORDERED.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ORDERED})
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    folder = resolve(options.model).folder
    base = read_architecture(folder)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}")
    print(f"{options.model}: {base.family}, {base.parameters:,} parameters, {base.dtype}; {options.kernels} kernels\n")
    print("| growth | parameters | fp32: largest change of a logit | with cache | KL, nats | bits (fp32) | stored |")
    print("|---|---|---|---|---|---|---|", flush=True)
    broken = []
    for name, operators in cases(base).items():
        if options.case and name not in options.case:
            continue
        try:
            program = grow_program(base, operators)
        except ScalerError as error:
            print(f"| {name} | not applicable: {error.wrong} | | | | | |")
            continue
        grown = options.work / "grown"
        shutil.rmtree(grown, ignore_errors=True)
        write(program, grown, durable=False)
        proof = prove(folder, grown, prompts(folder), promised=promise(operators), program=program)
        print(_row(name, program.parameters, proof), flush=True)
        bits = options.kernels == "ordered" and name in BITS
        if not proof.passed or (bits and not all(check.bitwise for check in proof.checks)):
            broken.append(name)
            print(f"broken: {name}: {proof.reason}", file=sys.stderr)
    shutil.rmtree(options.work)
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nall within their bars")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, default=Path("exactness-benchmark"), help="folder; removed at the end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", action="append", help="only this growth; repeat it")
    parser.add_argument("--kernels", choices=("fastest", "ordered"), default="fastest")
    return parser.parse_args()


def _row(name: str, parameters: int, proof: Proof) -> str:
    by_way = {check.way: check for check in proof.checks}
    plain, cached = (by_way.get(f"unrounded {way}") or by_way[way] for way in ("plain", "cached"))
    where = " (before rounding)" if "unrounded plain" in by_way else ""
    stored = by_way.get("stored")
    ratio = "-"
    if stored is not None and stored.own_kl:
        ratio = "same bits" if stored.bitwise else f"{stored.kl / stored.own_kl:.2f}"
    return (
        f"| {name} | {parameters / 1e6:.1f}M | {plain.largest_difference:.1e}{where} | {cached.largest_difference:.1e} "
        f"| {plain.kl:.1e} | {'same' if plain.bitwise and cached.bitwise else 'differ'} | {ratio} |"
    )


if __name__ == "__main__":
    sys.exit(main())
