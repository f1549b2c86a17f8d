"""Evaluation against lm-eval: 5-shot multiple choice, the first number, the perplexity's own error, a long measurement.

    python3 -m venv /tmp/peer && /tmp/peer/bin/pip install torch==2.13.0 transformers==5.23.0 "lm_eval[hf]==0.4.13" \
        "python-dateutil<3"
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/evaluation.py --peer /tmp/peer/bin/python

Questions are the MMLU "dev" ones inside lm-eval's package, asked as "Question: ...\\nAnswer:" with the choices' texts;
five others stand in front. Each side runs in a process of its own, on the same folder and type; what is
timed begins when its model is loaded. CPU seconds, so that other work on the machine matters less. Exit code 1 where a
limit is broken: 6 times as fast, the same answers, the first number in a tenth of the time, perplexity within 0.05 %
of fp64, a long measurement within 1.15 of one plain pass per token and 100 MB.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SHOTS = 5
TASK = """task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: "%(test)s", fewshot: "%(fewshot)s"}}
output_type: multiple_choice
test_split: test
fewshot_split: fewshot
fewshot_config: {sampler: first_n}
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
num_fewshot: 5
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
PEER = """
import json, sys, time, torch
torch.set_num_threads(1)
from lm_eval import simple_evaluate, __version__
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
folder, tasks, dtype = sys.argv[1:4]
model = HFLM(pretrained=folder, dtype=dtype, device="cpu", batch_size=8)
begun, wall = time.process_time(), time.monotonic()
manager = TaskManager(include_path=tasks)
found = simple_evaluate(model, tasks=["local_choices"], task_manager=manager, log_samples=True, bootstrap_iters=0)
samples = sorted(found["samples"]["local_choices"], key=lambda one: one["doc_id"])
scores = [[float(answer[0]) for answer in one["filtered_resps"]] for one in samples]
seconds = time.process_time() - begun, time.monotonic() - wall
print("RESULT", json.dumps({"scores": scores, "cpu": seconds[0], "wall": seconds[1], "version": __version__}))
"""


def main() -> int:
    """Run what was asked for; print ratios."""
    options = _options()
    if options.ours:
        print("RESULT", json.dumps(ours(Path(options.ours), Path(options.folder), options.dtype)))
        return 0
    from scaler_wizard.models import resolve

    folder = resolve(options.model).folder
    passed = []
    with tempfile.TemporaryDirectory() as place:
        if options.peer:
            write_task(Path(place), options.peer, options.questions)
            passed.append(choices(Path(place), folder, options))
    if options.length:
        passed.append(perplexity(folder, options))
        passed.append(long(folder, options))
    return 0 if all(passed) else 1


# -- multiple choice -----------------------------------------------------------------------------------------------


def write_task(place: Path, peer: Path, count: int) -> None:
    """The questions as JSON lines, and lm-eval's description of the task."""
    found = subprocess.run(
        [peer, "-c", "import lm_eval; print(lm_eval.__file__)"], check=True, capture_output=True, text=True
    )
    prompts = Path(found.stdout.strip()).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    items = [item for text in json.loads(prompts.read_text(encoding="utf-8")).values() for item in _items(text)]
    order = np.random.default_rng(0).permutation(len(items))
    picked = [items[number] for number in order[: count + SHOTS]]
    files = {"fewshot": picked[:SHOTS], "test": picked[SHOTS:]}
    for name, rows in files.items():
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    task = TASK % {name: place / f"{name}.jsonl" for name in files}
    (place / "task.yaml").write_text(task, encoding="utf-8")


def _items(text: str) -> list[dict[str, Any]]:
    items = []
    for block in re.split(r"\n\n(?=Q: )", text)[1:]:
        match = re.match(r"Q: (.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*\(([ABCD])\)", block, re.S)
        if match:
            items.append({"question": match[1], "choices": list(match.groups()[1:5]), "answer": "ABCD".index(match[6])})
    return items


def ours(place: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """The same questions here, in a process of its own."""
    import torch

    from scaler_wizard.evals.choices import Question, answer_all
    from scaler_wizard.models import load_model, load_tokenizer

    torch.set_num_threads(1)
    rows = {name: [json.loads(line) for line in (place / f"{name}.jsonl").open()] for name in ("fewshot", "test")}
    shots = [f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}\n\n" for row in rows["fewshot"]]
    questions = [
        Question(f"Question: {row['question']}\nAnswer:", tuple(row["choices"]), row["answer"]) for row in rows["test"]
    ]
    model, tokenizer = load_model(folder, dtype=dtype), load_tokenizer(folder)
    begun, wall = time.process_time(), time.monotonic()
    first, scores = None, {}
    for answer in answer_all(model, tokenizer, questions, examples="".join(shots)):
        first = first or (time.process_time() - begun, time.monotonic() - wall)
        scores[answer.number] = answer.log_likelihoods.tolist()
    cpu, seconds = time.process_time() - begun, time.monotonic() - wall
    return {"scores": [scores[n] for n in range(len(questions))], "cpu": cpu, "wall": seconds, "first": first}


def choices(place: Path, folder: Path, options: argparse.Namespace) -> bool:
    """Time both sides and compare their answers."""
    mine = _child([sys.executable, __file__, "--ours", str(place), "--folder", str(folder), "--dtype", options.dtype])
    theirs = _child([str(options.peer), "-c", PEER, str(folder), str(place), options.dtype])
    one, other = np.array(mine["scores"]), np.array(theirs["scores"])
    same = int((one.argmax(1) == other.argmax(1)).sum())
    faster, sooner = theirs["cpu"] / mine["cpu"], theirs["cpu"] / mine["first"][0]
    worst = np.abs(one - other).max()
    print(
        f"lm-eval {theirs['version']}, {folder.name}, {options.dtype}, {len(one)} questions, {SHOTS} examples in front"
    )
    print(f"  CPU seconds: lm-eval {theirs['cpu']:.1f}, ours {mine['cpu']:.1f}: {faster:.1f} times as fast")
    print(f"  first number after {mine['first'][0]:.2f} CPU seconds: 1/{sooner:.0f} of lm-eval's time")
    print(f"  same answers {same}/{len(one)}; largest difference of a log-likelihood {worst:.4f}")
    return bool(same == len(one) and faster >= 6 and sooner >= 10)


def _child(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


# -- perplexity and long windows -------------------------------------------------------------------------------------


def perplexity(folder: Path, options: argparse.Namespace) -> bool:
    """The gate's softmax against fp64, on the very same hidden states."""
    import torch

    from scaler_wizard.evals.perplexity import nll_of
    from scaler_wizard.models import load_model

    model, window = load_model(folder, dtype=options.dtype), _window(folder, 2048)
    ids = torch.from_numpy(window.astype(np.int64))[None]
    with torch.inference_mode():
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
        mine = float(nll_of(model, hidden, ids[0, 1:]).mean())
        weight = model.lm_head.weight.double()
        exact = [
            torch.nn.functional.cross_entropy(part.double() @ weight.T, goal, reduction="sum")
            for part, goal in zip(hidden.split(256), ids[0, 1:].split(256), strict=True)
        ]
        low = torch.cat(
            [
                model.lm_head(part).log_softmax(-1).gather(1, goal[:, None])
                for part, goal in zip(hidden.split(256), ids[0, 1:].split(256), strict=True)
            ]
        )
    best = float(sum(exact)) / hidden.shape[0]
    error, theirs = np.exp(mine - best) - 1, np.exp(-float(low.double().mean()) - best) - 1
    print(f"  perplexity {np.exp(best):.4f} in fp64; ours {error:+.4%}; softmax in {options.dtype} {theirs:+.4%}")
    return abs(error) <= 5e-4


def long(folder: Path, options: argparse.Namespace) -> bool:
    """Loss of every token of one long window, against one plain pass over it: the model's logits, and no loss."""
    import torch

    from scaler_wizard.evals.perplexity import token_nll
    from scaler_wizard.models import load_model

    torch.set_num_threads(1)
    model, window = load_model(folder, dtype=options.dtype), _window(folder, options.length)
    ids = torch.from_numpy(window.astype(np.int64))[None]
    with torch.inference_mode():
        model.model(input_ids=ids, use_cache=True)  # as a plain pass, but without its logits: memory is held to that
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    token_nll(model, window[None])
    seconds, high = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    with torch.inference_mode():
        model(input_ids=ids, use_cache=True)
    plain = time.process_time() - begun
    more = (high - peak) / 1024
    ratio = seconds / plain
    print(f"  {options.length} tokens: one plain pass {plain:.1f} CPU seconds, measured {seconds:.1f}: {ratio:.2f}")
    print(f"  peak memory above the plain pass: {more:.0f} MB")
    return seconds <= 1.15 * plain and more <= 100


def _window(folder: Path, length: int) -> Any:
    from scaler_wizard.data import encode, load_corpus, windows
    from scaler_wizard.models import load_tokenizer

    return windows(encode(load_corpus("kjv").heldout[:1], load_tokenizer(folder)), length, limit=1)[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="python of an environment with lm-eval")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--length", type=int, default=4096, help="tokens of the long window; 0 leaves it out")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
