"""Three low-rank experts of one model, merged by every method: what is kept of each expert's gain on held-out text.

    .venv/bin/python benchmarks/merge_experts.py --work experts                        # all: some hours on one core
    .venv/bin/python benchmarks/merge_experts.py --work experts --only ties knots      # some methods
    .venv/bin/python benchmarks/merge_experts.py --work experts --only --table         # the table of what is measured

The experts are fixed beforehand: low-rank adapters of rank 16 on every linear layer of SmolLM2-135M, trained on the
help texts of Python (`pydoc_data.topics`), on the source of its standard library, and on the King James Bible, 48 steps
of 4 x 256 tokens at 3e-4 in fp32, each from random numbers of its own. They, and what the base and the experts make of
each text, stay in the folder, so that methods can be measured one by one. Each text's calibration part chooses the
weights; its held-out windows are read once a method; `--part fresh` reads later windows that nothing else reads.

Kept is (loss of the base - loss of the merge) / (loss of the base - loss of the expert). `averaging` is the plain mean.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from scaler_wizard.adapting import AdapterMerge, merge_adapters
from scaler_wizard.core_merge import ADAPTER, learn_core, learnt_merge
from scaler_wizard.core_search import By
from scaler_wizard.data import Tokens, encode, load_corpus, training_windows, windows
from scaler_wizard.evals.perplexity import token_nll
from scaler_wizard.gradient_search import gradient_search
from scaler_wizard.judging import kept_score
from scaler_wizard.lora import add_lora
from scaler_wizard.losses import linear_cross_entropy
from scaler_wizard.merge import METHODS, Method, TaskArithmetic
from scaler_wizard.merge.knobs import told
from scaler_wizard.merge.recipe import read_merge
from scaler_wizard.merging import merge_models, prepare
from scaler_wizard.mixture import Mixture, mix_models
from scaler_wizard.models import best_dtype, load_model, load_tokenizer, resolve
from scaler_wizard.searching import Try, coordinate_search
from scaler_wizard.weights import Program
from scaler_wizard.weights.evaluate import Source, evaluate, from_float, to_float

MODULES = ("argparse.py", "ast.py", "typing.py", "inspect.py", "tarfile.py", "pdb.py", "subprocess.py", "decimal.py")
MODULES += ("_pydecimal.py", "doctest.py", "zipfile.py", "smtplib.py", "turtle.py", "logging/__init__.py", "shutil.py")
STEPS, BATCH, LENGTH, RANK, RATE = 48, 4, 256, 16, 3e-4
CHOOSE, CALIBRATION, HELD_OUT = 3, 12, 8
"""Windows of each text that a try reads, that learnt weights read, and that the table and a confirmation read."""
ADAPTED = "_proj.weight"
"""The matrices that the experts changed."""
NAMES = ("help", "source", "bible")
Settings = tuple[dict[str, Any], dict[str, Any], float]
ROWS: Mapping[str, tuple[str, Settings, int]] = {
    "averaging": ("linear", ({}, {}, 1.0), 1),
    "linear": ("linear", ({}, {}, 1.0), 3),
    "multislerp": ("multislerp", ({}, {}, 1.0), 1),
    "multislerp of changes": ("multislerp", ({}, {"base": True}, 1.0), 1),
    "karcher": ("karcher", ({}, {}, 0.0), 1),
    "by matrix": ("task_arithmetic", ({}, {}, 0.6), 24),
    "by matrix, 96 steps": ("task_arithmetic", ({}, {}, 0.6), 96),
    "by direction": ("task_arithmetic", ({}, {}, 0.6), 96),
    "by core": ("task_arithmetic", ({}, {}, 0.6), 96),
    "task_arithmetic": ("task_arithmetic", ({}, {}, 0.6), 5),
    "ties": ("ties", ({"density": 0.5}, {}, 1.0), 3),
    "dare_linear": ("dare_linear", ({"density": 0.8}, {}, 0.6), 1),
    "dare_ties": ("dare_ties", ({"density": 0.8}, {}, 0.7), 1),
    "della_linear": ("della_linear", ({"density": 0.7}, {}, 0.6), 1),
    "della": ("della", ({"density": 0.7}, {}, 0.7), 1),
    "breadcrumbs": ("breadcrumbs", ({"density": 0.9}, {}, 0.6), 1),
    "breadcrumbs_ties": ("breadcrumbs_ties", ({"density": 0.9}, {}, 1.0), 1),
    "model_stock": ("model_stock", ({}, {}, 0.0), 1),
    "sce": ("sce", ({}, {"select_topk": 0.5}, 0.0), 1),
    "ram": ("ram", ({}, {}, 0.0), 1),
    "ramplus_tl": ("ramplus_tl", ({}, {}, 0.0), 1),
    "tsv": ("tsv", ({}, {}, 0.0), 1),
    "iso_c": ("iso_c", ({}, {}, 0.0), 1),
    "concatenate": ("task_arithmetic", ({}, {}, 0.6), 1),
    "knots": ("task_arithmetic", ({}, {"density": 0.5}, 1.0), 2),
    "mixture": ("task_arithmetic", ({}, {}, 0.6), 0),
}
"""The method of a row, (settings of each model, of the method, the weight that a search begins at), tries. A weight of
0 stands for a method without weights. `by matrix` learns its weights by the gradient, `mixture` puts the feed-forward
blocks side by side on the attention of the merge. Not here: slerp, nuslerp, nearswap and arcee_fusion, which take two
models, and passthrough."""
LEARNT = {"by matrix": CALIBRATION - CHOOSE, "by matrix, 96 steps": 30, "by direction": 30, "by core": 30}
"""Learnt by the gradient, each step on one window of each text, of so many."""
CORES: Mapping[str, By] = {"by direction": "direction", "by core": "core"}
FUSED = ("concatenate", "knots")
"""Made of the adapters, not of whole matrices; what is searched is how much of the fused adapter is added."""


def main() -> int:
    """Train, search, measure, print."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    base, texts = resolve(options.model).folder, _texts(options.work)
    adapters = {
        name: _expert(base, text, options.work / name, number) for number, (name, text) in enumerate(texts.items())
    }
    bench = ExpertBench(base, adapters, texts, options.work)
    bench.parents(options.part, HELD_OUT)
    for name in ROWS if options.only is None else options.only:
        bench.reset()
        begun = time.process_time()
        tried, weights = _measure(name, bench)
        kept = bench.kept(options.part, HELD_OUT)
        row = {"tries": tried, "weights": weights, "kept": kept, "seconds": round(time.process_time() - begun)}
        _keep(options.work / f"rows-{options.part}.json", name, row)
        print(f"{name} ({row['seconds']} CPU seconds): {_line(name, row)}", flush=True)
    print(_table(bench, options))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("merge-experts"), help="folder for texts and adapters")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=("heldout", "fresh"), default="heldout", help="windows that are reported on")
    parser.add_argument("--only", nargs="*", help=f"rows: {', '.join(ROWS)}")
    return parser.parse_args()


# -- the experts ----------------------------------------------------------------------------------------------------


def _texts(work: Path) -> dict[str, str]:
    from pydoc_data.topics import topics

    help_texts = work / "help.txt"  # one text, so that its three parts are three stretches
    help_texts.write_text("\n\n".join(topics.values()), encoding="utf-8")
    library = Path(sysconfig.get_paths()["stdlib"])
    source = work / "source.jsonl"
    files = [library / name for name in MODULES if (library / name).is_file()]
    source.write_text("".join(json.dumps({"text": file.read_text(encoding="utf-8")}) + "\n" for file in files))
    return dict(zip(NAMES, (str(help_texts), str(source), "kjv"), strict=True))


def _expert(base: Path, text: str, folder: Path, seed: int) -> Path:
    """A LoRA adapter trained on one text; kept in the folder for the next run."""
    if (folder / "adapter_config.json").is_file():
        return folder
    model = add_lora(load_model(base, dtype="float32"), rank=RANK, seed=seed).train()
    ids = training_windows(encode(load_corpus(text).train, load_tokenizer(base)), LENGTH, seed=0).ids
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS, pct_start=0.1)
    inner = model.base_model.model
    for step in range(STEPS):
        picks = np.arange(step * BATCH, (step + 1) * BATCH) % len(ids)
        batch = torch.from_numpy(ids[picks].astype(np.int64))
        hidden = inner.model(batch, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        loss = linear_cross_entropy(hidden, inner.lm_head.weight, batch[:, 1:].flatten())
        loss.backward()
        print(f"{folder.name} {step + 1}/{STEPS}: {loss.item():.3f}", file=sys.stderr, flush=True)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    return folder


# -- measuring ------------------------------------------------------------------------------------------------------


class ExpertBench:
    """The base in fp32, whose adapted matrices every merge replaces, and what base and experts make of each text."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], texts: Mapping[str, str], work: Path) -> None:
        self.base, self.adapters, self.work = base, adapters, work
        self.tokenizer = load_tokenizer(base)
        self.reset()
        self._texts = texts
        self.windows = {
            "calibration": self.cut("calibration", 0, CALIBRATION),
            "heldout": self.cut("heldout", 0, HELD_OUT),
            "fresh": self.cut("heldout", HELD_OUT, HELD_OUT),
        }

    def reset(self) -> None:
        """The base itself again."""
        self.model = load_model(self.base, dtype="float32")

    def cut(self, part: str, skip: int, count: int) -> dict[str, Tokens]:
        """`count` windows of each text's part, behind the first `skip`."""
        found = {}
        for name, source in self._texts.items():
            documents = getattr(load_corpus(source), part)
            found[name] = windows(encode(documents, self.tokenizer), LENGTH, limit=skip + count)[skip:]
            assert len(found[name]) == count, f"{name}: {len(found[name])} windows of its {part} text"
        return found

    def put(self, program: Program) -> None:
        """The program's matrices, rounded as they would be written."""
        source, parameters = Source(program.seed), dict(self.model.named_parameters())
        for name, tensor in program.tensors.items():
            if name.endswith(ADAPTED):
                values = evaluate(tensor, 0, tensor.shape[0], source)
                stored = to_float(from_float(values.reshape(-1), tensor.dtype), tensor.dtype).reshape(tensor.shape)
                with torch.no_grad():
                    parameters[name].copy_(torch.from_numpy(stored.copy()))
        source.close()

    def losses(self, part: str, count: int) -> dict[str, float]:
        """Of the model as it is now, nats per token, of the first windows of each text."""
        return {name: float(token_nll(self.model, ids[:count]).mean()) for name, ids in self.windows[part].items()}

    def parents(self, part: str, count: int) -> dict[str, tuple[float, float]]:
        """Loss of the base and of the text's own expert on the first windows, by text; each is asked once."""
        file = self.work / f"parents-{part}.json"
        if not file.is_file():
            base = self._read_parent(None, part)
            own = {name: self._read_parent(name, part)[name] for name in self.adapters}
            file.write_text(json.dumps({name: [base[name], own[name]] for name in self.adapters}))
        known = json.loads(file.read_text())
        return {name: tuple(float(np.mean(losses[:count])) for losses in pair) for name, pair in known.items()}

    def _read_parent(self, name: str | None, part: str) -> dict[str, list[float]]:
        """Losses of each window: of the base on all texts, of an expert on its own."""
        models = [
            {"model": f"{self.base}+{folder}", "weight": float(key == name)} for key, folder in self.adapters.items()
        ]
        block = {"method": "task_arithmetic", "base": str(self.base), "models": models}
        self.put(prepare(read_merge(block, "parent", METHODS)).program)
        chosen = {key: ids for key, ids in self.windows[part].items() if name in (None, key)}
        count = CHOOSE if part == "calibration" else HELD_OUT
        return {key: token_nll(self.model, ids[:count]).mean(axis=1).tolist() for key, ids in chosen.items()}

    def kept(self, part: str, count: int) -> dict[str, float]:
        """Share of each expert's gain that the model has as it is now."""
        losses = self.losses(part, count)
        return {name: (base - losses[name]) / (base - own) for name, (base, own) in self.parents(part, count).items()}

    def score(self, method: Method) -> Try:
        """Merge, read some calibration windows, compare."""
        self.parents("calibration", CHOOSE)  # before the merge is put, since asking them puts them
        self.put(prepare(method).program)
        kept = self.kept("calibration", CHOOSE)
        return Try(weights={}, kept=kept, score=kept_score(kept))


# -- rows -----------------------------------------------------------------------------------------------------------


def _measure(name: str, bench: ExpertBench) -> tuple[int, str]:
    """Leave the row's best merge in the bench; how many were tried, and its weights in words. It is chosen once."""
    stored = bench.work / f"chosen-{name.replace(',', '').replace(' ', '-')}.json"
    if not stored.is_file():
        method, tried = _choose(name, bench)
        stored.write_text(json.dumps({"tries": tried, "merge": method.model_dump(mode="json")}))
    known = json.loads(stored.read_text())
    method = read_merge(known["merge"], stored.name, METHODS)
    if name == "mixture":
        return known["tries"], _mix(bench, method)
    bench.put(prepare(method).program)
    return known["tries"], _weights(method)


def _choose(name: str, bench: ExpertBench) -> tuple[Method, int]:
    """The best of the row's merges on calibration text, and how many there were."""
    method, settings, tries = ROWS[name]
    adapters = {name: _fused(name, bench, settings)} if name in FUSED else bench.adapters
    first = _method(method, bench.base, adapters, ({}, {}, 1.0) if name in FUSED else settings)
    if name in LEARNT:
        return _learnt(name, bench, first, tries, LEARNT[name]), tries
    if tries <= 1:
        return first, 1
    seen, best = coordinate_search(first, bench.score, tries=tries)
    return seen[best][0], len(seen)


def _method(name: str, base: Path, adapters: Mapping[str, Path], settings: Settings) -> Method:
    each, general, weight = settings
    weighted = {"weight": weight} if weight else {}
    models = [{"model": f"{base}+{folder}", **weighted, **each} for folder in adapters.values()]
    wants_base = METHODS[name].base_is == "needed" or "base" in general
    named = {"base": str(base)} if wants_base else {}
    return read_merge({"method": name, "models": models, **general, **named}, name, METHODS)


def _fused(name: str, bench: ExpertBench, settings: Settings) -> Path:
    """One adapter of all."""
    _, general, weight = settings
    listed = [{"adapter": str(one), "weight": weight} for one in bench.adapters.values()]
    block = {"method": name, "adapters": listed, **general}
    return merge_adapters(AdapterMerge.read(block, name), bench.work / f"fused-{name}", force=True).folder


def _learnt(name: str, bench: ExpertBench, first: Method, steps: int, count: int) -> Method:
    """A weight for every matrix, or a core, by the gradient, on `count` calibration windows that no try reads."""
    assert isinstance(first, TaskArithmetic)
    texts = bench.cut("calibration", CHOOSE, count)
    if name in CORES:
        return _cored(bench, first, texts, steps, CORES[name])
    gains = {name: base - own for name, (base, own) in bench.parents("calibration", CHOOSE).items()}
    return gradient_search(first, prepare(first).parents, texts, gains, steps=steps)


def _cored(bench: ExpertBench, first: TaskArithmetic, texts: Mapping[str, Tokens], steps: int, by: By) -> Method:
    """The merge of the adapter that was learnt, which stays in the folder."""
    parents, folder = prepare(first).parents, bench.work / f"learnt-{by}" / ADAPTER
    folder.mkdir(parents=True, exist_ok=True)
    learnt = learn_core(first, parents, texts, by=by, steps=steps, dtype=best_dtype()[0])
    looks = {step: {name: round(share, 3) for name, share in kept.items()} for step, kept in learnt.trace.items()}
    print(f"{by}: step {learnt.step} of {json.dumps(looks)}", file=sys.stderr, flush=True)
    return learnt_merge(first, parents, learnt, by, folder, folder.parent)[0]


def _mix(bench: ExpertBench, attention: Method) -> str:
    """A mixture whose routers start from the calibration text; returns its size."""
    models = {"base": attention} | {
        name: _method("linear", bench.base, {name: folder}, ({}, {}, 1.0)) for name, folder in bench.adapters.items()
    }
    folders = {name: merge_models(one, bench.work / f"whole-{name}", force=True).folder for name, one in models.items()}
    prompts = {name: bench.tokenizer.batch_decode(ids) for name, ids in bench.windows["calibration"].items()}
    experts = [{"model": str(folders[name]), "prompts": prompts[name]} for name in bench.adapters]
    recipe = Mixture.read({"base": str(folders["base"]), "experts": experts, "active": 2}, "mixture")
    mixed = mix_models(recipe, bench.work / "mixture", force=True)
    bench.model = load_model(mixed.folder, dtype="float32")
    return f"{mixed.lineage.parameters / 1e6:,.0f}M parameters, 2 of 3 active"


def _weights(method: Method) -> str:
    """Of each model, or their means where every matrix has one."""
    found = told(method)
    scale = found.pop("scale", 1.0)
    listed = ", ".join(f"{value:.3g}" for value in found.values())
    return listed if scale == 1.0 else f"{listed}; scale {scale:g}"


# -- the table ------------------------------------------------------------------------------------------------------


def _keep(file: Path, name: str, row: Mapping[str, Any]) -> None:
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**known, name: row}, indent=1))


def _line(name: str, row: Mapping[str, Any]) -> str:
    kept = " | ".join(f"{row['kept'][text]:.1%}" for text in NAMES)
    return f"| {name} | {row['tries']} | {kept} | {min(row['kept'].values()):.1%} | {row['weights']} |"


def _table(bench: ExpertBench, options: argparse.Namespace) -> str:
    file = options.work / f"rows-{options.part}.json"
    rows = json.loads(file.read_text()) if file.is_file() else {}
    parents = bench.parents(options.part, HELD_OUT)
    gains = ", ".join(f"{name} {base:.3f} - {own:.3f} = {base - own:.3f}" for name, (base, own) in parents.items())
    ordered = sorted(rows.items(), key=lambda row: -min(row[1]["kept"].values()))
    lines = [
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
        f"{options.model}, {options.part}; loss of base and expert, nats per token: {gains}\n",
        f"| method | tries | {' | '.join(NAMES)} | worst | weights |\n|---|---|{'---|' * len(NAMES)}---|---|",
        *(_line(name, row) for name, row in ordered),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
