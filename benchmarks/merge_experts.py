"""Three low-rank experts of one model, merged by every method: what is kept of each expert's gain on held-out text.

    .venv/bin/python benchmarks/merge_experts.py                                         # the embedded model: minutes
    .venv/bin/python benchmarks/merge_experts.py --model smollm2 --steps 40 --tries 8    # about an hour on one core

Experts learn the help texts of Python (`pydoc_data.topics`), the source of its standard library, and the King James
Bible (which the embedded model knows already; it learns the names of Unicode instead). Each text's calibration part
chooses the weights, its held-out part is read once a method. Kept is (loss of the
base - loss of the merge) / (loss of the base - loss of the best expert); the first row is plain averaging.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import sysconfig
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from scaler_wizard.adapting import AdapterMerge, merge_adapters
from scaler_wizard.data import encode, load_corpus, training_windows
from scaler_wizard.judging import Answers, Exam, domain_windows
from scaler_wizard.lora import add_lora
from scaler_wizard.merge import METHODS, Method
from scaler_wizard.merge.recipe import read_merge
from scaler_wizard.merging import Prepared, prepare
from scaler_wizard.models import best_dtype, load_model, load_tokenizer, resolve
from scaler_wizard.searching import Bench, coordinate_search

MODULES = ("argparse.py", "ast.py", "typing.py", "inspect.py", "tarfile.py", "pdb.py", "subprocess.py", "decimal.py")
MODULES += ("_pydecimal.py", "doctest.py", "zipfile.py", "smtplib.py", "turtle.py", "logging/__init__.py", "shutil.py")
METHOD_SETTINGS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "linear": ({}, {}),
    "task_arithmetic": ({}, {}),
    "ties": ({"density": 0.5}, {}),
    "dare_linear": ({"density": 0.8}, {}),
    "dare_ties": ({"density": 0.8}, {}),
    "della_linear": ({"density": 0.7}, {}),
    "della": ({"density": 0.7}, {}),
    "breadcrumbs": ({"density": 0.9}, {}),
    "breadcrumbs_ties": ({"density": 0.9}, {}),
    "multislerp": ({}, {}),
    "model_stock": ({}, {}),
    "sce": ({}, {"select_topk": 0.5}),
    "tsv": ({}, {}),
    "iso_c": ({}, {}),
}
"""Settings of each model, and of the method."""
FUSED = ("knots",)
"""Made of the adapters, not of whole matrices; what is searched is how much of the fused adapter is added."""
START = {"ties": 1.0, "dare_ties": 0.7, "della": 0.7, "breadcrumbs_ties": 0.7}
"""Weight that the search begins at, where it is not 0.6; a mean's weights begin equal."""
UNSEARCHED = ("averaging", "model_stock", "sce", "tsv", "iso_c")
"""Plain averaging as it is; two without weights; two that need minutes of singular values for each try."""
WEIGHTLESS = ("model_stock", "sce", "tsv", "iso_c")


def main() -> int:
    """Train, search, measure, print."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    base, texts = resolve(options.model).folder, _texts(options.work, bible=options.model != "embedded")
    tokenizer = load_tokenizer(base)
    length = min(options.length, int(load_model(base, dtype="float32").config.max_position_embeddings))
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"{options.model}, rank {options.rank}, {options.steps} steps of {options.batch} x {length} tokens\n",
        flush=True,
    )
    begun = time.process_time()
    adapters = {name: _expert(base, text, options.work / name, length, options) for name, text in texts.items()}
    print(f"trained in {time.process_time() - begun:.0f} CPU seconds", flush=True)
    cut: dict[str, Any] = {"length": length}
    calibration = domain_windows(texts, tokenizer, "calibration", count=options.windows, **cut)
    heldout = domain_windows(texts, tokenizer, "heldout", count=4 * options.windows, **cut)
    ready = prepare(_method("task_arithmetic", base, adapters, [1.0] * 3))
    fast = {"dtype": best_dtype()[0]}
    asked = {"calibration": Exam(calibration, tokenizer), "heldout": Exam(heldout, tokenizer)}
    choose, final = (
        _bench(ready, exam, options.work / f"{part}-{options.windows}.npz", **fast) for part, exam in asked.items()
    )
    for name in texts:
        held = {key.rpartition("/")[2]: found.losses[name].mean() for key, found in final.parents.items()}
        print(f"{name}: {', '.join(f'{key} {loss:.3f}' for key, loss in held.items())}", flush=True)
    print(f"\n| method | tries | {' | '.join(texts)} | worst | weights |\n|---|---|{'---|' * len(texts)}---|---|")
    for name in options.only or ("averaging", *METHOD_SETTINGS, *FUSED):
        chosen = _fused(name, adapters, options.work) if name in FUSED else adapters
        method = "task_arithmetic" if name in FUSED else "linear" if name == "averaging" else name
        first = _method(method, base, chosen, _begin(name, options))
        _row(name, first, choose, final, tries=1 if name in UNSEARCHED else options.tries)
    print(f"\n{time.process_time() - begun:.0f} CPU seconds in all")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("merge-experts"), help="folder for texts and adapters")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tries", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--begin", type=float, nargs=3, help="weights that every search begins at")
    parser.add_argument("--only", nargs="*", help="methods, `averaging` and `knots` among them")
    return parser.parse_args()


def _texts(work: Path, *, bible: bool) -> dict[str, str]:
    from pydoc_data.topics import topics

    help_texts = work / "help.jsonl"
    help_texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()))
    library = Path(sysconfig.get_paths()["stdlib"])
    source = work / "source.jsonl"
    files = [library / name for name in MODULES if (library / name).is_file()]
    source.write_text("".join(json.dumps({"text": file.read_text(encoding="utf-8")}) + "\n" for file in files))
    names = work / "names.jsonl"
    blocks = [range(start, start + 256) for start in range(0, 0x20000, 256)]
    pages = ["\n".join(f"U+{code:04X} {name}" for code in block if (name := _name(code))) for block in blocks]
    names.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages if page))
    return {"help": str(help_texts), "source": str(source), **({"bible": "kjv"} if bible else {"names": str(names)})}


def _name(code: int) -> str:
    return unicodedata.name(chr(code), "").replace("CJK UNIFIED IDEOGRAPH-", "")


def _bench(ready: Prepared, exam: Exam, file: Path, **more: Any) -> Bench:
    """A bench whose parents are asked once: what they answered is kept in the folder for the next run."""
    known: dict[str, Answers] = {}
    if file.is_file():
        stored = np.load(file)
        names = {key.split("|")[0] for key in stored}
        parts = {name: [_part(stored, name, what) for what in ("losses", "right")] for name in names}
        known = {name: Answers(*found) for name, found in parts.items()}
    bench = Bench(ready, exam, known=known, **more)
    answers = [(name, "losses", one.losses) for name, one in bench.parents.items()]
    answers += [(name, "right", one.right) for name, one in bench.parents.items()]
    np.savez(file, **{f"{name}|{what}|{text}": values for name, what, of in answers for text, values in of.items()})
    return bench


def _part(stored: Any, name: str, what: str) -> dict[str, Any]:
    return {key.split("|")[2]: stored[key] for key in stored if key.startswith(f"{name}|{what}|")}


def _expert(base: Path, text: str, folder: Path, length: int, options: argparse.Namespace) -> Path:
    """A LoRA adapter trained on one text; kept in the folder for the next run."""
    if (folder / "adapter_config.json").is_file():
        return folder
    model = add_lora(load_model(base, dtype="float32"), rank=options.rank, seed=0).train()
    ids = training_windows(encode(load_corpus(text).train, load_tokenizer(base)), length, seed=0).ids
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=options.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=options.steps, pct_start=0.1)
    for step in range(options.steps):
        picks = np.arange(step * options.batch, (step + 1) * options.batch) % len(ids)
        batch = torch.from_numpy(ids[picks].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.model != "embedded"):
            loss = model(batch, labels=batch).loss
        loss.backward()
        print(f"{folder.name} {step + 1}/{options.steps}: {loss.item():.3f}", file=sys.stderr, flush=True)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    return folder


def _method(name: str, base: Path, adapters: dict[str, Path], begin: list[float]) -> Method:
    each, general = METHOD_SETTINGS[name]
    pairs = zip(adapters.values(), begin, strict=False)
    weights = {folder: {} if name in WEIGHTLESS else {"weight": weight} for folder, weight in pairs}
    models = [{"model": f"{base}+{folder}", **weights[folder], **each} for folder in adapters.values()]
    named = {"base": str(base)} if METHODS[name].base_is != "not used" else {}
    return read_merge({"method": name, "models": models, **named, **general}, name, METHODS)


def _fused(name: str, adapters: dict[str, Path], work: Path) -> dict[str, Path]:
    """One adapter of all, by KnOTS-TIES; its weight is searched."""
    block = {"method": name, "density": 0.5, "adapters": [{"adapter": str(one)} for one in adapters.values()]}
    return {name: merge_adapters(AdapterMerge.read(block, name), work / name, force=True).folder}


def _begin(name: str, options: argparse.Namespace) -> list[float]:
    """Weights that a search begins at; of a mean, and of an adapter that is fused already, equal ones."""
    if name in ("averaging", *FUSED):
        return [1.0] * 3
    return options.begin or [START.get(name, 0.6)] * 3


def _row(title: str, method: Method, choose: Bench, final: Bench, *, tries: int) -> None:
    """Search on calibration text, measure the best on held-out text."""
    seen: list[Any] = [(method, None)]
    best = 0
    if tries > 1:
        seen, best = coordinate_search(method, choose.like(prepare(method)).score, tries=tries)
    found = final.like(prepare(seen[best][0])).score(seen[best][0])
    kept = " | ".join(f"{share:.1%}" for share in found.kept.values())
    weights = ", ".join(f"{value:g}" for value in found.weights.values())
    print(f"| {title} | {len(seen)} | {kept} | {min(found.kept.values()):.1%} | {weights} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
