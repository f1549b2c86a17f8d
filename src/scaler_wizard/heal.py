"""P3: train the grown model, and beside it the base on the same tokens, to know whether growth paid.

Both arms see the same windows in the same order under the same rotary settings and the same schedule. They differ in
what learns: the grown model as the plan says; the control everything, or adapters of the same rank where the plan
trains adapters, since that is what one would do without growth.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scaler_wizard.accelerators import gpu_wishes, load_in_four_bits, refuse_without_gpu, use_liger
from scaler_wizard.architecture import read_architecture
from scaler_wizard.breaker import CircuitBreaker, fall_shown, questions_needed
from scaler_wizard.ceiling import hand_back, within
from scaler_wizard.data import Tokens, encode, load_corpus, windows
from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.perplexity import token_nll
from scaler_wizard.evals.probe import probe
from scaler_wizard.events import Note
from scaler_wizard.failpoints import reach
from scaler_wizard.fetch import cache_folder
from scaler_wizard.grow import new_parameters
from scaler_wizard.intervals import paired_gain
from scaler_wizard.lora import adapter_ranks, add_lora, merge_lora, moved_lora, save_lora
from scaler_wizard.metrics import Probe
from scaler_wizard.models import load_model, load_tokenizer, resolve, save_model
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.run import ADAPTER, write_whole
from scaler_wizard.sampling import times_read
from scaler_wizard.task import Task
from scaler_wizard.train import Arm, Emit, Spans
from scaler_wizard.untrusted.folder import stage

if TYPE_CHECKING:
    from scaler_wizard.imitate import Imitation
    from scaler_wizard.teacher import Teacher

QUESTIONS = 40
"""Asked at each evaluation: about a quarter of what an evaluation reads anyway."""
SPECTRUM_STEPS = 4
"""Steps' worth of text that adapters are fitted to before they learn."""


@dataclass(frozen=True)
class Conduct:
    """How a training talks and is told to stop."""

    emit: Emit
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class Texts:
    """One corpus in the model's tokens."""

    train: list[Tokens]
    calibration: Tokens
    """(windows, length): what the breaker watches."""
    held_out: Tokens
    """(windows, length): what the arms are compared on."""


@dataclass(frozen=True)
class ArmResult:
    """One trained arm."""

    nll_by_window: list[float]
    """Held-out loss, one value per window, in the same order in both arms."""
    seconds: float
    parameters: int
    tokens: int
    compute: str
    """Type of the matrix products."""
    learning_rate: float
    """Its peak."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Rank of the adapter at each matrix; empty where none were trained."""


@dataclass(frozen=True)
class Assignment:
    """Where one arm comes from and goes."""

    arm: Arm
    source: Path
    out: Path
    compute: str
    """Type of its matrix products, or `auto`."""


def heal(task: Task, run: Conduct) -> dict[str, Any]:
    """Train both arms; the grown one is staged; returns the evidence for the gate."""
    settings = task.phase.change
    assert isinstance(settings, Train)
    texts = _texts(task, settings)
    if (words := _what_questions_show(task)) is not None:
        run.emit(Note(text=words))
    before = [float(value) for value in _held_out(task.current, texts)]
    hand_back()
    with _ceiling(task):
        grown = _train_arm(
            task, settings, texts, run, Assignment("grown", task.current, task.staging, settings.compute)
        )
        control = _compared(task, settings, texts, run, compute=grown.compute) if settings.control else None
    gain = None
    if control is not None:
        gain = paired_gain(np.array(control.nll_by_window), np.array(grown.nll_by_window), seed=task.seed)
    return {
        "training": {
            "tokens": grown.tokens,
            "train": settings.train,
            "learning_rate": grown.learning_rate,
            "compute": grown.compute,
            "ranks": grown.ranks,
            "ended_at": _until(task),
            "held_out_window": settings.window,
            "before": float(np.mean(before)),
            "grown": _summary(grown),
            "control": None if control is None else _summary(control),
            "gain_over_control": None if gain is None else gain.model_dump(),
        }
    }


def _what_questions_show(task: Task) -> str | None:
    """Which fall of the accuracy the few questions inside the training can show, and what a smaller one would take."""
    found, margin = task.baseline.probe if task.baseline else None, task.breaker.accuracy_margin
    if found is None or margin == 0:
        return None
    base, asked = found.accuracy.value, min(QUESTIONS, found.asked)
    shown = fall_shown(task.breaker, base, asked)
    seen = "no fall" if shown is None else f"a fall of {100 * shown:.0f} points"
    needed = questions_needed(base, margin)
    return f"{asked} questions at each evaluation can show {seen}; {200 * margin:.0f} points would take {needed}."


def _ceiling(task: Task) -> AbstractContextManager[None]:
    """Memory beyond the limit is refused, so that a training retreats instead of being ended; a GPU refuses itself."""
    import torch

    return nullcontext() if torch.cuda.is_available() else within(task.memory_limit_bytes)


def _texts(task: Task, settings: Train) -> Texts:
    corpus, tokenizer = load_corpus(task.data), load_tokenizer(task.current)

    def cut(part: Any, tokens: int) -> Tokens:
        return windows(encode(part, tokenizer), settings.window, limit=settings.windows_of(tokens))

    encoded = encode(corpus.train, tokenizer)
    times = times_read(
        corpus.train,
        [len(ids) for ids in encoded],
        native=task.base.native_context,
        long_share=settings.long_share,
        seed=task.seed,
    )
    return Texts(
        train=[ids for ids, count in zip(encoded, times, strict=True) for _ in range(count)],
        calibration=cut(corpus.calibration, settings.evaluate_tokens),
        held_out=cut(corpus.heldout, settings.held_out_tokens),
    )


def _compared(task: Task, settings: Train, texts: Texts, run: Conduct, *, compute: str) -> ArmResult | None:
    """The control; None where the breaker stopped it: what was grown is kept, and there is nothing to compare with."""
    from scaler_wizard.train import Tripped

    try:
        return _control(task, settings, texts, run, compute=compute)
    except Tripped as tripped:
        run.emit(Note(text=f"The control was stopped, so nothing is compared with it: {tripped.telegram.sentence}"))
        return None


def _control(task: Task, settings: Train, texts: Texts, run: Conduct, *, compute: str) -> ArmResult:
    """The base under the current rotary settings: only growth tells the two arms apart."""
    run.emit(Note(text="The control: the base, trained on the same tokens."))
    source, out = task.scratch / "control-base", task.scratch / "control"
    control_base(task.base.folder, task.current, source, link=task.owns(task.base.folder))
    out.mkdir(exist_ok=True)
    return _train_arm(task, settings, texts, run, Assignment("control", source, out, compute))


def control_base(base: Path, current: Path, folder: Path, *, link: bool) -> None:
    """Stage the base with the window of `current`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    stage(base, folder, link=link)
    config, grown = (json.loads((place / "config.json").read_text(encoding="utf-8")) for place in (base, current))
    for key in ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings"):
        config.pop(key, None)
        if key in grown:
            config[key] = grown[key]
    (folder / "config.json").unlink()  # a link to the base's file would change the base
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _summary(arm: ArmResult) -> dict[str, Any]:
    return {
        "parameters": arm.parameters,
        "nll": float(np.mean(arm.nll_by_window)),
        "nll_by_window": arm.nll_by_window,
        "seconds": arm.seconds,
    }


def _train_arm(task: Task, settings: Train, texts: Texts, run: Conduct, given: Assignment) -> ArmResult:
    """Train one arm, write it, measure what was written; a finished arm is not trained again."""
    done = task.scratch / f"{given.arm}.json"
    if done.exists():
        return ArmResult(**json.loads(done.read_text(encoding="utf-8")))
    begun = time.monotonic()
    learnt = _learn(task, settings, texts, run, given)
    gc.collect()
    hand_back()
    read = [float(value) for value in _held_out(given.out, texts)]
    result = learnt(nll_by_window=read, seconds=time.monotonic() - begun)
    write_whole(done, json.dumps(vars(result)))
    reach("arm.noted")
    return result


def _learn(task: Task, settings: Train, texts: Texts, run: Conduct, given: Assignment) -> Callable[..., ArmResult]:
    """Train and write; what is known before the written model is read. Nothing of the training stays in memory."""
    import torch

    from scaler_wizard.batches import text_of
    from scaler_wizard.train import Trainer

    model, spans = _learner(task, settings, given.arm, given.source, texts)
    tokenizer = load_tokenizer(task.current)
    trainer = Trainer(
        model=model,
        text=text_of(
            texts.train,
            tokenizer,
            settings,
            native=task.base.native_context,
            target=settings.target or task.target_context,
            seed=task.seed,
        ),
        settings=settings,
        evaluate=lambda trained: float(token_nll(_inner(trained), texts.calibration).mean()),
        watch=CircuitBreaker(_breaker(task), base_accuracy=_base_accuracy(task)),
        emit=run.emit,
        scratch=task.scratch,
        should_stop=run.should_stop,
        seed=task.seed,
        compute=None if given.compute == "auto" else getattr(torch, given.compute),
        arm=given.arm,
        spans=spans,
        teacher=(teacher := _teacher(task, settings, tokenizer)),
        imitation=_imitation(teacher, model, given.arm),
        quiz=_quiz(task, tokenizer),
        until=_until(task),
    )
    reach("arm.begun")
    history = trainer.run()
    reach("arm.trained")
    if teacher is not None:
        run.emit(Note(text=teacher.account()))
    ranks = adapter_ranks(model)
    if settings.lora_base == "nf4":
        whole = load_model(given.source, dtype="float32")
        model = moved_lora(model, whole, rank=settings.lora_rank, seed=task.seed, kind=settings.lora_kind)
    if (
        given.arm == "grown"
        and settings.train == "lora"
        and not settings.lora_restarts
        and settings.lora_kind != "pissa"
    ):
        save_lora(model, given.out / ADAPTER, base=str(given.source))
    save_model(_stock(model, texts), given.out, like=given.source)
    reach("arm.saved")
    return partial(
        ArmResult,
        parameters=read_architecture(given.out).parameters,
        tokens=history.step * settings.windows_per_step * settings.window,
        compute=str(trainer.compute).removeprefix("torch."),
        ranks=ranks,
        learning_rate=settings.learning_rate if history.peak is None else history.peak,
    )


def _until(task: Task) -> int | None:
    """The step that a person chose to keep after the breaker had stopped the training."""
    return task.after_stop.keep if task.after_stop is not None else None


def _breaker(task: Task) -> Breaker:
    """It only warns where a person chose to go on although it had stopped the training."""
    anyway = task.after_stop is not None and task.after_stop.keep is None
    return task.breaker.model_copy(update={"action": "warn"}) if anyway else task.breaker


def _quiz(task: Task, tokenizer: Any) -> Callable[[Any], Probe] | None:
    """The baseline's probe again, with few questions; None where the baseline was not asked."""
    asked = task.baseline.probe if task.baseline else None
    if asked is None:
        return None
    spec = task.phase.measure
    items = asked.asked if spec is None or not spec.probe_items else spec.probe_items
    seed = task.seed if spec is None else spec.seed
    return lambda trained: probe(_inner(trained), tokenizer, asked.name, items=items, seed=seed, few=QUESTIONS)


def _teacher(task: Task, settings: Train, tokenizer: Any) -> Teacher | None:
    from scaler_wizard.teacher import hire

    if (how := settings.distil) is None:
        return None
    folder = task.base.folder if how.teacher == "base" else resolve(how.teacher).folder
    return hire(how, folder=folder, student=tokenizer, cache=cache_folder() / "teachers")


def _imitation(teacher: Teacher | None, model: Any, arm: Arm) -> Imitation | None:
    """Blocks that a recipe names are the grown model's; the control, which may lack them, learns from even pairs."""
    if teacher is None or not teacher.settings.inner:
        return None
    return teacher.imitation(_inner(model).model, named=arm == "grown")


def _learner(task: Task, settings: Train, arm: Arm, source: Path, texts: Texts) -> tuple[Any, Spans | None]:
    """The model in fp32, and what learns in it; the control has no new parameters, so all of it learns."""
    import torch

    for wish in gpu_wishes(settings):
        refuse_without_gpu(wish, has_gpu=torch.cuda.is_available())
    model = load_in_four_bits(source) if settings.lora_base == "nf4" else load_model(source, dtype="float32")
    if settings.kernels == "liger":
        use_liger(model)
    if settings.train == "lora":
        return _with_adapters(task, settings, model, texts), None
    if settings.train == "new" and arm == "grown":
        return model, new_spans(task)
    if settings.train == "norms":
        return model, norm_spans(model)
    return model, {name: None for name, _ in model.named_parameters()}


def _with_adapters(task: Task, settings: Train, model: Any, texts: Texts) -> Any:
    import torch

    from scaler_wizard.batches import batches, text_of
    from scaler_wizard.lora import spectrum_ranks
    from scaler_wizard.train import batch_loss

    native = min(task.base.native_context, settings.window)
    text = text_of(texts.train, None, settings, native=native, target=settings.window, seed=task.seed)
    plain = settings.model_copy(update={"short_share": 0.0, "skip_share": 0.0, "needle_share": 0.0})
    parts = [part for step in range(SPECTRUM_STEPS) for part in batches(text, plain, step, task.seed)]
    ranks = None
    if settings.lora_ranks == "spectrum":
        losses = [partial(batch_loss, batch=part, compute=torch.float32) for part in parts]
        ranks = spectrum_ranks(model, losses, rank=settings.lora_rank)
    read = [ids for part in parts for ids in part.ids.split(settings.window, dim=1) if ids.shape[1] == settings.window]
    kind, rank = settings.lora_kind, settings.lora_rank
    return add_lora(model, rank=rank, seed=task.seed, kind=kind, ranks=ranks, text=read)


def norm_spans(model: Any) -> Spans:
    """The norms and the embedding, with a tied head: what a longer window needs beside adapters (arXiv:2309.12307)."""
    import torch

    chosen = [
        name
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Embedding) or type(part).__name__.endswith("Norm")
    ]
    return {f"{name}.{own}": None for name in chosen for own, _ in model.get_submodule(name).named_parameters()}


def new_spans(task: Task) -> Spans:
    """Which rows and columns of the grown model did not exist in the base."""
    found: dict[str, tuple[tuple[int, int, int], ...] | None] = {}
    base = read_architecture(task.base.folder)
    for name, part in new_parameters(base, task.grown_by).tensors.items():
        spans = [(0, *run) for run in part.rows] + [(1, *run) for run in part.columns]
        found[name] = None if part.whole else tuple(spans)
    if not found:
        raise ScalerError("heal.train: new: the model has no new parameters", "grow it, or train `lora` or `all`")
    return found


def _stock(model: Any, texts: Texts) -> Any:
    import torch

    if not hasattr(model, "merge_and_unload"):
        return model
    return merge_lora(model.eval(), torch.from_numpy(texts.calibration[:1, :64].astype(np.int64)))


def _inner(model: Any) -> Any:
    """The model under PEFT's wrapper; its adapters stay active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _held_out(folder: Path, texts: Texts) -> Any:
    """Loss by window of what was written, not of what was in memory: saving in bfloat16 may have changed it."""
    return token_nll(load_model(folder), texts.held_out).mean(axis=1)


def _base_accuracy(task: Task) -> float | None:
    probe = task.baseline.probe if task.baseline else None
    return probe.accuracy.value if probe else None
