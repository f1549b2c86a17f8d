"""Fill in every number of a recipe, or say in two lines why it cannot be done; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from scaler_wizard import wording
from scaler_wizard.accelerators import gpu_wishes, refuse_without_gpu
from scaler_wizard.architecture import Architecture, Blueprint, read_architecture
from scaler_wizard.catalogue import find, licence_warning
from scaler_wizard.context.ladder import ladder
from scaler_wizard.context.native import NativeWindow, recall
from scaler_wizard.context.rope import METHODS, cautions, default_method
from scaler_wizard.contract import Contract
from scaler_wizard.early import refuse_another_vocabulary
from scaler_wizard.errors import ScalerError
from scaler_wizard.estimate import (
    LEAST_RANK,
    START_SECONDS,
    Tried,
    adapter_rank,
    expected_compute,
    fitted,
    flops_per_second,
    healing_bytes,
    healing_disk,
    measuring_bytes,
    merging_flops,
    model_rate,
    proving_bytes,
    search_flops,
    seconds,
    short,
    spreads,
    total,
    training_flops,
)
from scaler_wizard.gate import tokens
from scaler_wizard.grow import DuplicateLayers, Operator, grown, promise
from scaler_wizard.hardware import Hardware
from scaler_wizard.metrics import MeasureSpec
from scaler_wizard.models import Source, resolve
from scaler_wizard.phases import (
    Base,
    Baseline,
    Change,
    Estimate,
    Export,
    Extend,
    Grow,
    Merge,
    Phase,
    Plan,
    Search,
    Train,
)
from scaler_wizard.planned_merge import merge_settings, merge_title
from scaler_wizard.recipe import Distil, Heal, Recipe, count, factor
from scaler_wizard.record import explicit
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.target import Solution, fit_context, solve, target_size

SMALL = 20_000_000
"""Parameters below which everything is measured on many windows at once and trained whole."""
GRADIENT_STEPS = 40
UNASKED_WINDOW = 8192
"""Tokens out to which a window is measured that nobody asked to change: a whole one may not fit into memory."""
GIB = 2**30
SMALL_TOKENS, LARGE_TOKENS = 983_040, 12_288
"""Trained on where the recipe names no number: minutes for both arms, of the embedded model or of SmolLM2."""
LEAST_WINDOW = 64
"""Tokens of the shortest window that is trained to save memory."""
LEAST_STEPS = 8
"""Few tokens make small steps rather than few of them."""
FROM_THE_BASE = Distil(teacher="base", first=0.5)
"""How a growth that changes the function is healed: first on what the base says, then on text alone."""


@dataclass(frozen=True)
class Setting:
    """What a plan is made for."""

    recipe: Recipe
    base: Architecture
    hardware: Hardware
    measured: NativeWindow | None = None
    """How far the base was measured to read; None where nobody measured."""
    tried: tuple[Tried, ...] = ()
    """What a trial found of the plan's trainings."""

    @property
    def small(self) -> bool:
        """A model that this machine measures and trains in seconds."""
        return self.base.parameters < SMALL

    @property
    def native(self) -> int:
        """Window of the base that is used as such: what is claimed, or less where less was measured."""
        claimed = self.base.native_context
        return claimed if self.measured is None else min(claimed, self.measured.measured)

    @property
    def item_bytes(self) -> int:
        """Bytes of a number while measuring: the worker takes bfloat16 where the machine is made for it."""
        return 2 if self.hardware.has_bfloat16 else 4

    @property
    def threads(self) -> int:
        """Processor threads of a worker."""
        return self.recipe.limits.threads or self.hardware.cpus

    @property
    def memory_limit(self) -> int:
        """Most bytes that a worker may use."""
        share = min(self.recipe.limits.memory_share, Contract().memory_share)
        limit = int((self.hardware.vram_bytes or self.hardware.ram_bytes) * share)
        return min(limit, self.recipe.limits.memory or limit)


def make_plan(
    recipe: Recipe, source: Source, base: Architecture, hardware: Hardware, *, tried: tuple[Tried, ...] = ()
) -> Plan:
    """The whole run, phase by phase, with the times of a trial where there was one.

    Raises ScalerError where the wish is impossible on this model or machine.
    """
    setting = Setting(recipe, base, hardware, recall(base), tried)
    target = target_context(setting)
    operators, notes = _growth(setting, target)
    view = grown(base, operators)
    phases = tuple(_numbered(_phases(setting, target, operators, view)))
    plan = Plan(
        name=recipe.name or source.name.lower().replace("_", "-").replace(".", "-")[:40].strip("-"),
        base=_base(setting, source),
        parameters=view.parameters,
        context=target,
        data=recipe.data,
        phases=phases,
        limits=recipe.limits,
        gate=recipe.gate,
        breaker=recipe.breaker,
        seed=recipe.seed,
        estimate=total([phase.estimate for phase in phases]),
        notes=(*notes, *_notes(setting, target, operators), *_licence(source)),
        recipe=recipe.model_dump(mode="json"),
    )
    _must_fit(plan, setting)
    return plan


def _base(setting: Setting, source: Source) -> Base:
    base = setting.base
    return Base(
        source=setting.recipe.model,
        folder=source.folder,
        name=source.name,
        licence=source.licence,
        family=base.family,
        parameters=base.parameters,
        layers=base.layers,
        hidden=base.hidden,
        native_context=setting.native,
        dtype=base.dtype,
    )


# -- what is wished --------------------------------------------------------------------------------------------------


def target_context(setting: Setting) -> int:
    """The window that the recipe asks for, in tokens."""
    wish = setting.recipe.context
    if wish is None:
        if setting.recipe.parameters is None:
            raise ScalerError("the recipe asks for nothing", "add `context: 2x` or `parameters: 1.3x`")
        return setting.native
    times = factor(wish)
    target = int(setting.native * times) if times else count(wish, kilo=1024)
    if target <= setting.native:
        raise ScalerError(
            f"context: {wish} is {target} tokens; the model's window is {setting.native} already",
            f"name more than {tokens(setting.native)}, or leave the line out",
        )
    return target


def _growth(setting: Setting, target: int) -> tuple[tuple[Operator, ...], tuple[str, ...]]:
    wish = setting.recipe.parameters
    if wish is None:
        return (), ()
    size = target_size(wish, setting.base, item_bytes=setting.base.item_bytes)
    solution = _solved(
        json.dumps(dict(setting.base.config), sort_keys=True), size, fit_context(wish) or target, setting.recipe.allow
    )
    return tuple(solution.operators), solution.reasons  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _solved(config: str, size: int, target: int, allow: tuple[str, ...] | None) -> Solution:
    """Whoever looks for a plan that fits asks for the same growth again and again."""
    return solve(Blueprint(json.loads(config)), size, context=target, allow=allow)


def _notes(setting: Setting, target: int, operators: tuple[Operator, ...]) -> Iterator[str]:
    if setting.recipe.heal is False and promise(operators) == "no":
        yield "heal: false: this growth changes the model's function, and nothing mends it"
    elif setting.recipe.heal is False:
        yield "heal: false: nothing is trained, so new parameters stay empty: room added, not yet filled"
    elif promise(operators) == "no" and setting.base.value("final_logit_softcapping"):
        yield "this growth is healed on text alone: capped logits make no teacher, so the base cannot be asked"
    elif not setting.recipe.heal.control:
        yield "heal.control: false: nobody will know whether simply training the base would have done as well"
    if UNASKED_WINDOW < target == setting.native:
        yield f"the window stays at {tokens(target)} and is measured out to {tokens(UNASKED_WINDOW)} only"
    method = "searched" if searches(setting) else setting.recipe.extend.method or default_method(setting.base)
    if target > setting.native and method in METHODS:
        yield from cautions(setting.base, target, method)
    if target > setting.native:
        yield _native(setting)
    if target > 2 * setting.native:
        rungs = len(ladder(setting.native, target))
        yield f"the window grows {target / setting.native:g}x in {rungs} rungs, a gate each"


def _native(setting: Setting) -> str:
    """Where the ladder starts, and how that is known."""
    claimed, found = tokens(setting.base.native_context), setting.measured
    if found is None:
        return f"the ladder starts at {claimed}, as the configuration claims; the first phase measures it"
    measured = f"the configuration claims {claimed}, {tokens(found.measured)} were measured"
    return f"the ladder starts at {tokens(setting.native)}: {measured}"


def _licence(source: Source) -> Iterator[str]:
    """What the base's licence asks of a grown model."""
    listed = find(source.name)
    warning = licence_warning(source.licence or (listed.licence if listed is not None else None))
    if warning is not None:
        yield warning


# -- phases ----------------------------------------------------------------------------------------------------------


Step = tuple[Literal["P0", "P1", "P2", "P3", "P4"], str, str, Change, MeasureSpec | None, Estimate]


def _numbered(steps: Iterator[Step]) -> Iterator[Phase]:
    for number, (stage, name, title, change, spec, estimate) in enumerate(steps):
        yield Phase(number=number, stage=stage, name=name, title=title, change=change, measure=spec, estimate=estimate)


def _phases(setting: Setting, target: int, operators: tuple[Operator, ...], view: Blueprint) -> Iterator[Step]:
    base, recipe = setting.base, setting.recipe
    spec = measure_spec(setting, target)
    short = spec.model_copy(update={"windows": 0, "probe": None, "probe_items": 0})
    yield "P0", "baseline", "baseline", Baseline(), spec, _measuring(setting, base, spec, disk=_bytes(base))
    if operators:
        title = f"growth {wording.size(base.parameters)} -> {wording.size(view.parameters)}"
        cheapest = isinstance(operators[0], DuplicateLayers)
        change = Grow(operators=operators, parameters=view.parameters, cheapest=cheapest)
        yield "P1", "grow", title, change, short, _measuring(setting, view, short, disk=_bytes(view), proves=True)
    broken = promise(operators) == "no"
    if broken and target > setting.native and recipe.heal is not False:
        train = _first(setting, train_settings(setting, recipe.heal, setting.native, grows=True))
        train = train.model_copy(update={"target": setting.native})
        yield _healing(setting, view, train, short, "heal-first", "healing what growth has changed")
        broken = False
    window = setting.native
    for rung in ladder(setting.native, target):
        title = f"window {tokens(window)} -> {tokens(rung)}"
        rung_spec = _rung_spec(spec, rung, last=rung == target)
        stretch = extend_settings(setting, rung)
        yield "P2", f"extend-{rung}", title, stretch, rung_spec, _stretching(setting, view, stretch, rung_spec)
        if recipe.extend.heal_rungs and recipe.heal is not False and rung < target:
            train = _that_fits(setting, recipe.heal, view, rung, grows=bool(operators))
            train = train.model_copy(update={"target": rung, "when": "needed"})
            told = f"training at {tokens(rung)} where needed"
            yield _healing(setting, view, train, rung_spec, f"heal-{rung}", told)
        window = rung
    if recipe.heal is not False:
        train = _that_fits(setting, recipe.heal, view, target, grows=bool(operators))
        train = _first(setting, train) if broken else train
        learned = wording.size(train.steps * train.windows_per_step * train.window)
        yield _healing(setting, view, train, spec, "heal", f"training on {learned} tokens")
    if recipe.merge is not None:
        merge = merge_settings(recipe, base, operators)
        yield "P4", "merge", merge_title(merge), merge, spec, _merging(setting, view, merge, spec)
    basis = "links and a few small files"
    estimate = Estimate(seconds=10.0, memory_bytes=500 * 2**20, disk_bytes=4 * 2**20, basis=basis)
    yield "P4", "export", "export", Export(), None, estimate


def _healing(setting: Setting, view: Blueprint, train: Train, spec: MeasureSpec, name: str, title: str) -> Step:
    train = fitted(view, setting.base, train, setting.memory_limit)
    return "P3", name, title, train, spec, _training(setting, view, train, spec)


def _first(setting: Setting, train: Train) -> Train:
    """The first training of a model whose function growth has changed: on the base's own logits before text alone."""
    if train.distil is not None or setting.base.value("final_logit_softcapping"):  # capped logits make no teacher
        return train
    return train.model_copy(update={"distil": FROM_THE_BASE})


def measure_spec(setting: Setting, target: int) -> MeasureSpec:
    """Small models: many windows at once. Large ones: one long text, asked along a single pass."""
    wish, native, small = setting.recipe.measure, setting.native, setting.small
    target = target if target > native else min(native, UNASKED_WINDOW)
    fractions = (0.25, 0.5, 0.75, 1.0) if not small else (native / target, 0.5, 1.0)
    lengths = sorted({max(64, int(target * share)) for share in fractions} | {min(native, target)})
    probe = wish.probe or ("none" if small else "capitals")
    return MeasureSpec(
        length=target,
        windows=wish.windows or (64 if small else 1),
        bucket=max(16, min(1024, target // 8)),
        truncated=True,
        short_length=min(native, 512),
        short_windows=128 if small else 8,
        needle_lengths=tuple(lengths),
        needles=wish.needles or (32 if small else 16),
        digits=4 if small else 7,
        along=not small,
        probe=None if probe == "none" else probe,
        probe_items=0 if probe == "none" else 120,
        seed=setting.recipe.seed,
    )


def _rung_spec(spec: MeasureSpec, rung: int, *, last: bool) -> MeasureSpec:
    """A rung is judged on its own length; the last one against the base's reading of truncated text."""
    lengths = tuple(sorted({length for length in spec.needle_lengths if length <= rung} | {rung}))
    bucket = spec.bucket if last else max(16, min(1024, rung // 8))
    changes = {"length": rung, "bucket": bucket, "truncated": not last, "needle_lengths": lengths, "probe": None}
    return spec.model_copy(update=changes | {"probe_items": 0})


def searches(setting: Setting) -> bool:
    """Whether rungs look for their rotary settings: as wished, else where a model is small and no method is named."""
    wish = setting.recipe.extend
    return setting.small and wish.method is None if wish.search is None else wish.search


def extend_settings(setting: Setting, rung: int) -> Extend:
    """The method that was named, or a search: over whole windows for small models, else skipped positions first."""
    wish, small = setting.recipe.extend, setting.small
    if wish.method is not None and wish.method not in METHODS:
        raise ScalerError(f"extend.method: {wish.method}: no such method", f"known: {', '.join(METHODS)}")
    if not searches(setting):
        return Extend(length=rung, method=wish.method or default_method(setting.base), stop=wish.stop)
    search = Search(
        evaluations=wish.evaluations or 30,
        minutes=wish.minutes or (2 if small else 15),
        window=rung if small else min(1536, rung),
        windows=32 if small else 5,
        facts=1 if small else 3,
        digits=4 if small else 7,
        short_length=min(setting.native, 512),
        short_windows=72 if small else 8,
        finalists=5 if small else 2,
        final_windows=96 if small else 1,
        gradient_steps=GRADIENT_STEPS if wish.gradient else 0,
        seed=setting.recipe.seed,
    )
    return Extend(length=rung, search=search, stop=wish.stop)


def train_settings(setting: Setting, heal: Heal, target: int, *, grows: bool) -> Train:
    """Small models learn whole, at full length; large ones a little, in short windows with skipped positions."""
    small = setting.small
    window = heal.window or (min(target, 512) if small else min(1024, setting.native))
    learn = heal.train or ("all" if small else "new" if grows else "lora")
    wished = heal.tokens or (SMALL_TOKENS if small else LARGE_TOKENS)
    for_adapters(heal, learn)
    for wish in gpu_wishes(heal):
        refuse_without_gpu(wish, has_gpu=bool(setting.hardware.vram_bytes))
    per_step = max(1, min(8192 if small else 1024, wished // LEAST_STEPS) // window)
    steps = max(1, round(wished / (per_step * window)))
    train = Train(
        train=learn,
        steps=steps,
        windows_per_step=per_step,
        micro_batch=max(1, min(per_step, (8192 if small else 1024) // window)),
        window=window,
        short_share=0.25 if window > setting.native else 0.0,
        skip_share=0.5 if target > window else 0.0,
        needle_share=0.1 if small and target > setting.native else 0.0,
        learning_rate=heal.learning_rate if isinstance(heal.learning_rate, float) else 2e-3 if small else 2e-4,
        find_rate=heal.learning_rate == "find",
        warmup_steps=max(1, steps // 20),
        schedule=heal.schedule,
        distil=heal.distil,
        teacher_parameters=_teacher_size(setting, heal),
        lora_rank=heal.lora_rank or adapter_rank(setting.base, steps * per_step * window),
        lora_kind=heal.lora_kind,
        lora_ranks=heal.lora_ranks or "uniform",
        lora_restarts=heal.lora_restarts,
        lora_base=heal.lora_base,
        optimizer=heal.optimizer,
        kernels=heal.kernels,
        long_share=heal.long_share,
        evaluate_every=max(1, steps // (8 if small else 4)),
        expects=expected_compute(setting.base, setting.hardware),
        checkpointing=False,
        control=heal.control,
    )
    if heal.lora_ranks is None and spreads(setting.base, train, setting.memory_limit):
        train = train.model_copy(update={"lora_ranks": "spectrum"})
    return train


def _that_fits(setting: Setting, heal: Heal, view: Blueprint, target: int, *, grows: bool) -> Train:
    """Fewer windows at once, recomputed activations, then, where the recipe names none, shorter windows, less rank."""
    train = fitted(view, setting.base, train_settings(setting, heal, target, grows=grows), setting.memory_limit)
    while heal.window is None and train.window >= 2 * LEAST_WINDOW:
        if healing_bytes(view, setting.base, train) <= setting.memory_limit:
            break
        shorter = train_settings(setting, heal.model_copy(update={"window": train.window // 2}), target, grows=grows)
        train = fitted(view, setting.base, shorter, setting.memory_limit)
    while heal.lora_rank is None and train.train == "lora" and train.lora_rank > LEAST_RANK:
        if healing_bytes(view, setting.base, train) <= setting.memory_limit:
            break
        train = train.model_copy(update={"lora_rank": train.lora_rank // 2})
    return train


def _teacher_size(setting: Setting, heal: Heal) -> int | None:
    """Parameters of the teacher; None without one. A teacher that does not fit is refused."""
    if heal.distil is None:
        return None
    if heal.distil.teacher == "base":
        return setting.base.parameters
    folder = resolve(heal.distil.teacher).folder
    refuse_another_vocabulary(setting.base.folder, folder, heal.distil.teacher)
    return read_architecture(folder).parameters


def for_adapters(heal: Heal, learn: str) -> None:
    """Refuse a wish for adapters where none are trained, rather than forget it."""
    wished = [
        name
        for name in ("lora_restarts", "lora_base", "lora_kind", "lora_ranks", "lora_rank")
        if getattr(heal, name) != type(heal).model_fields[name].default
    ]
    if wished and learn != "lora":
        raise ScalerError(f"heal.{wished[0]}: no adapters are trained (heal.train: {learn})", "add heal.train: lora")


# -- estimates -------------------------------------------------------------------------------------------------------


def _measuring(setting: Setting, view: Blueprint, spec: MeasureSpec, *, disk: int, proves: bool = False) -> Estimate:
    return Estimate(
        seconds=seconds(view, spec, setting.native, rate=_rate(setting, view)),
        memory_bytes=max(measuring_bytes(view, spec, item=setting.item_bytes), proving_bytes(view) if proves else 0),
        disk_bytes=disk + 4 * 2**20,
        basis=_basis(setting),
    )


def _stretching(setting: Setting, view: Blueprint, stretch: Extend, spec: MeasureSpec) -> Estimate:
    search = stretch.search
    extra = 0.0 if search is None else search_flops(view, search, stretch.length)
    most = 0.0 if search is None else search.minutes * 60
    searching = min(most, extra / _rate(setting, view))
    measuring = _measuring(setting, view, spec, disk=0)
    assert measuring.seconds is not None
    return measuring.model_copy(update={"seconds": measuring.seconds + searching})


def _training(setting: Setting, view: Blueprint, train: Train, spec: MeasureSpec) -> Estimate:
    measuring = measuring_bytes(view, spec, item=setting.item_bytes)
    for tried in setting.tried:
        if tried.train == short(train):
            after = seconds(view, spec, setting.native, rate=tried.rate(view)) - START_SECONDS
            return Estimate(
                seconds=tried.seconds_of(train) + after,
                memory_bytes=max(tried.memory_bytes, measuring),
                disk_bytes=_bytes(view) + 4 * 2**20,
                basis=f"a trial of {tried.train.steps} steps on {setting.threads} threads just now",
                band=tried.band,
            )
    extra = training_flops(view, setting.base, train)
    needed = healing_bytes(view, setting.base, train)
    return Estimate(
        seconds=seconds(view, spec, setting.native, extra=extra, rate=_rate(setting, view)),
        memory_bytes=max(needed, measuring),
        disk_bytes=_bytes(view) + healing_disk(view, setting.base, train) + 4 * 2**20,
        basis=_basis(setting),
    )


def _merging(setting: Setting, view: Blueprint, merge: Merge, spec: MeasureSpec) -> Estimate:
    measuring = _measuring(setting, view, spec, disk=_bytes(view), proves=True)
    assert measuring.memory_bytes is not None
    extra = merging_flops(view, merge)
    return Estimate(
        seconds=seconds(view, spec, setting.native, extra=extra, rate=_rate(setting, view)),
        memory_bytes=max(measuring.memory_bytes, measuring_bytes(view, spec)),
        disk_bytes=_bytes(view) + 4 * 2**20,
        basis=_basis(setting),
    )


def _rate(setting: Setting, view: Blueprint) -> float:
    """Operations a second: a trial's, where one read text."""
    if setting.tried:
        return setting.tried[0].rate(view)
    return model_rate(view, setting.threads, setting.hardware.instructions)


def _basis(setting: Setting) -> str:
    if setting.tried:
        return f"counted operations at the rate of a trial on {setting.threads} threads just now"
    rate = flops_per_second(setting.threads) / 1e9
    return f"counted operations at {rate:.0f} GFLOP/s, probed on {setting.threads} threads just now"


def _bytes(view: Blueprint) -> int:
    return view.parameters * (4 if view.config.get("dtype", view.config.get("torch_dtype")) == "float32" else 2)


def _must_fit(plan: Plan, setting: Setting) -> None:
    disk, memory = plan.estimate.disk_bytes, plan.estimate.memory_bytes
    if disk is not None and disk > setting.hardware.disk_free_bytes:
        raise ScalerError(
            f"the run needs {disk / GIB:.1f} GiB of disk; {setting.hardware.disk_free_bytes / GIB:.1f} GiB are free",
            "make room, or choose another folder: --runs DIR",
        )
    if memory is not None and memory > setting.memory_limit:
        worst = max(plan.phases, key=lambda phase: phase.estimate.memory_bytes or 0)
        raise ScalerError(
            f"{worst.slug} needs about {memory / GIB:.1f} GiB; the limit is {setting.memory_limit / GIB:.1f} GiB",
            "ask for a smaller window or fewer parameters, or raise limits.memory if it was lowered",
        )


# -- files -----------------------------------------------------------------------------------------------------------


def to_yaml(plan: Plan) -> str:
    """The plan as an editable file."""
    head = "# A plan: every number of a run. Edit it and run it: scaler run plan.yaml\n"
    data: dict[str, Any] = explicit(plan.model_dump(mode="json"))
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def load_plan(path: Path) -> Plan:
    """Read a plan file; a plan whose base has changed since is refused."""
    return on_its_base(Plan.read(load_yaml(path), path.name), path.name)


def on_its_base(plan: Plan, name: str) -> Plan:
    """The plan, if its base is still the one it was made for; `name` is its file's."""
    base = read_architecture(plan.base.folder)
    if base.parameters != plan.base.parameters:
        raise ScalerError(
            f"{name}: the base has {base.parameters} parameters, the plan was made for {plan.base.parameters}",
            "make the plan again: scaler plan recipe.yaml",
        )
    return plan


def explanation(plan: Plan) -> Iterator[str]:
    """Why the plan's recipe grows the way it does, and the other ways to the same size."""
    wish = plan.recipe.get("parameters")
    if wish is None:
        yield "The model keeps its size: the recipe names no `parameters`."
        return
    base = read_architecture(plan.base.folder)
    allow = plan.recipe.get("allow")
    size = target_size(wish, base, item_bytes=base.item_bytes, allow=allow)
    chosen = solve(base, size, context=fit_context(wish) or plan.context, allow=allow)
    for label, option in [("Chosen", chosen), *(("Instead", other) for other in chosen.alternatives)]:
        yield f"{label}: {option.title}"
        yield from (f"  - {reason}" for reason in option.reasons)


def is_plan(path: Path) -> bool:
    """Whether a file is a plan rather than a recipe."""
    return "phases" in load_yaml(path)
