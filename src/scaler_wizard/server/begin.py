"""From a wish to a run: which models there are, what a plan says to a wish, what is signed, how it starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from scaler_wizard.advise import advised
from scaler_wizard.architecture import Blueprint, read_architecture
from scaler_wizard.contract import VERSION, Contract, sign, text_hash
from scaler_wizard.errors import ScalerError
from scaler_wizard.experience import error_note
from scaler_wizard.fetch import cache_folder
from scaler_wizard.grow import grown
from scaler_wizard.hardware import Hardware, detect
from scaler_wizard.models import Source, from_hub, resolve, smollm2_folder
from scaler_wizard.parents import BASE, GROWN
from scaler_wizard.phases import Estimate, Grow, Plan, Train
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.run import Run, create
from scaler_wizard.server.uploads import Uploads
from scaler_wizard.server.wire import (
    Advised,
    BaseView,
    ContractView,
    EstimateView,
    ModelRow,
    PhaseView,
    PlanView,
    Said,
    Start,
    Wish,
)
from scaler_wizard.wishes import understand
from scaler_wizard.wording import size

OWN = ("embedded", "smollm2")
LITTLE = "1.1x"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Shop:
    """What can be chosen; a client names things by id, and the paths stay here."""

    runs: Path
    uploads: Uploads
    models: Path | None
    _ready: dict[str, Source] = field(default_factory=dict)
    """Models that were resolved: a large file is hashed, converted or fetched once."""
    _rows: dict[str, ModelRow] = field(default_factory=dict)
    """Their rows, since each takes two plans."""

    def model_rows(self) -> list[ModelRow]:
        """The models of this server, and those that were fetched from the hub."""
        fetched = [name for name in self._ready if HUB_ID.fullmatch(name)]
        return [self._row(name) for name in (*OWN, *self._found(), *fetched)]

    def _row(self, name: str) -> ModelRow:
        if name == "smollm2" and not smollm2_folder(cache_folder()).is_dir():
            return ModelRow(id=name, name=name, detail="SmolLM2-135M-Instruct, 134.5M parameters", ready=False)
        if name not in self._ready and name.endswith(".gguf"):
            return ModelRow(id=name, name=name, detail="GGUF", ready=False)
        try:
            return self._known(name)
        except ScalerError as error:
            return ModelRow(id=name, name=name, detail=error.wrong, ready=False)

    def _known(self, name: str) -> ModelRow:
        if name not in self._rows:
            row = _row(name, self.source(name))
            why = {"size_why": self._why(name, parameters=LITTLE), "window_why": self._why(name, context="2x")}
            self._rows[name] = row.model_copy(update=why)
        return self._rows[name]

    def _why(self, name: str, **growth: str) -> str | None:
        """Why the smallest wish of a kind cannot be planned; training is left out, since that can be given up."""
        try:
            self.plan(Wish(model=name, train="nothing", **growth))
        except ScalerError as error:
            return error.wrong
        return None

    def _found(self) -> dict[str, Path]:
        if self.models is None:
            return {}
        found = [path for path in sorted(self.models.iterdir()) if re.fullmatch(r"[\w][\w.-]{0,99}", path.name)]
        return {path.name: path for path in found if path.suffix == ".gguf" or (path / "config.json").is_file()}

    def model(self, name: str) -> str:
        """What a recipe calls the model with this id."""
        if name in OWN or (name in self._ready and HUB_ID.fullmatch(name)):
            return name
        if HUB_ID.fullmatch(name):  # never looked up as a folder, and never fetched by the way
            raise ScalerError(f"{name!r}: no such model here yet", "fetch it from the hub first")
        found = self._found().get(name)
        if found is None:
            known = ", ".join([*OWN, *self._found()])
            raise ScalerError(f"{name!r}: no such model here", f"choose one of {known}, or a hub id like ORG/NAME")
        return str(found.resolve())

    def source(self, name: str) -> Source:
        """The model with this id, converted where it has to be."""
        if name not in self._ready:
            self._ready[name] = resolve(self.model(name))
        return self._ready[name]

    def prepare(self, name: str) -> ModelRow:
        """Fetch or convert a model. Raises ScalerError where that cannot be done."""
        if HUB_ID.fullmatch(name) and name not in self._ready:
            self._ready[name] = from_hub(name)
        return self._known(name)

    def recipe(self, wish: Wish) -> Recipe:
        """The recipe of a wish."""
        fields = recipe_fields(wish) | {"model": self.model(wish.model), "data": self._text(wish.data)}
        if "merge" in fields:
            fields["merge"] = self._merge(fields["merge"])
        return Recipe.read(fields, "wish")

    def _merge(self, block: Any) -> Any:
        """A merge block whose models and texts are things of this server, by their ids."""
        try:
            named = {key: self._parent(block[key]) for key in ("base", "configuration", "tokenizer") if key in block}
            models = [{**one, "model": self._parent(one["model"])} for one in block["models"]]
            search = dict(block.get("search", {}))
            files = {name: self._text(str(source)) for name, source in search.get("texts", {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ScalerError("more: merge: not a merge block", "send it as the advice gave it") from None
        search |= {"texts": files} if files else {}
        return {**block, **named, "models": models, **({"search": search} if search else {})}

    def _text(self, source: str) -> str:
        return source if source == "kjv" else str(self.uploads.file(source))

    def _parent(self, name: Any) -> str:
        return str(name) if name in (GROWN, BASE) else self.model(str(name))

    def plan(self, wish: Wish) -> Plan:
        """The same plan that the command line makes."""
        recipe, source = self.recipe(wish), self.source(wish.model)
        return make_plan(recipe, source, read_architecture(source.folder), detect(self.runs))

    def advise(self, said: Said) -> Advised:
        """The recipe that fits the words, the model and this machine; or the question that decides."""
        if said.choose is None and (heard := understand(said.text)).recipe is None:
            return Advised(
                recipe=None, wish=None, reasons=heard.reasons, question=heard.question, choices=heard.choices
            )
        found = advised(said.text, model=self.model(said.model), choose=said.choose, runs=self.runs)
        wish = wish_of(said, found.data)
        return Advised(recipe=found.name, wish=wish, reasons=found.reasons, question=None, choices=())

    def start(self, ask: Start) -> Run:
        """Create the run; the same key never creates a second one. Raises ScalerError for a stale contract."""
        known = self.runs / f".started-{ask.key}"
        if known.exists():
            return Run(self.runs / known.read_text(encoding="utf-8"))
        terms = terms_of(ask.wish)
        if text_hash(terms) != ask.text_hash:
            raise ScalerError("the contract that was shown is not the one to be signed", "read it and sign it again")
        plan = self.plan(ask.wish)
        now = datetime.now(UTC)
        self.runs.mkdir(parents=True, exist_ok=True)
        signed = sign(terms, ask.sign, now=now)
        run = create(self.runs, to_yaml(plan), signed, name=plan.name, identity=plan.identity(), now=now)
        known.write_text(run.id, encoding="utf-8")
        return run


def _row(name: str, source: Source) -> ModelRow:
    found = read_architecture(source.folder)
    detail = f"{size(found.parameters)} parameters, window {found.native_context}, {found.family}"
    return ModelRow(id=name, name=source.name, detail=detail, ready=True)


MORE = ("allow", "breaker", "gate", "heal", "limits", "measure", "merge", "seed")
"""Fields of a recipe that advice may set without a control of its own."""


def recipe_fields(wish: Wish) -> dict[str, Any]:
    """What a person would write into a recipe file; what was left out stays out."""
    if unknown := wish.more.keys() - MORE:
        raise ScalerError(f"more: {', '.join(sorted(unknown))}: not to be set here", f"known: {', '.join(MORE)}")
    own = {"train": wish.train, "tokens": wish.tokens, "lora_rank": wish.lora_rank, "learning_rate": wish.learning_rate}
    heal = _group(wish, "heal") | {key: value for key, value in own.items() if value is not None}
    if not wish.control:
        heal["control"] = False
    limits = _group(wish, "limits") | ({} if wish.memory_share == 0.9 else {"memory_share": wish.memory_share})
    fields: dict[str, Any] = {"name": wish.name, "model": wish.model}
    fields |= {"parameters": wish.parameters, "context": wish.context}
    fields |= {"data": None if wish.data == "kjv" else wish.data, **wish.more}
    fields |= {"heal": False if wish.train == "nothing" else heal or None, "limits": limits or None}
    return {key: value for key, value in fields.items() if value is not None}


def _group(wish: Wish, name: str) -> dict[str, Any]:
    found = wish.more.get(name, {})
    if not isinstance(found, dict):
        raise ScalerError(f"more: {name}: not a group of fields", "send it as the advice gave it")
    return dict(found)


def wish_of(said: Said, fields: Mapping[str, Any]) -> Wish:
    """The fields of a recipe as a wish: those that the wizard has a control for, and the rest."""
    heal, limits = fields.get("heal", {}), dict(fields.get("limits", {}))
    trains = {} if heal is False else dict(heal)
    share = limits.pop("memory_share", 0.9)
    more = {key: value for key, value in fields.items() if key in MORE and key not in ("heal", "limits")}
    own = {
        "train": "nothing" if heal is False else trains.pop("train", None),
        "tokens": None if "tokens" not in trains else str(trains.pop("tokens")),
        "learning_rate": trains.pop("learning_rate", None),
        "lora_rank": trains.pop("lora_rank", None),
        "control": trains.pop("control", True),
    }
    more |= {key: group for key, group in (("heal", trains), ("limits", limits)) if group}
    sizes = {key: None if fields.get(key) is None else str(fields[key]) for key in ("parameters", "context")}
    return Wish(model=said.model, **sizes, **own, memory_share=share, more=more)


def terms_of(wish: Wish) -> Contract:
    """The contract that this wish is signed under."""
    return Contract(memory_share=wish.memory_share)


def contract_view(wish: Wish) -> ContractView:
    """What will be signed."""
    terms = terms_of(wish)
    points = tuple(line.partition(". ")[2] for line in terms.text().splitlines())
    return ContractView(version=VERSION, points=points, text_hash=text_hash(terms))


def plan_view(plan: Plan, recipe: Mapping[str, Any], runs: Path) -> PlanView:
    """A plan without its paths."""
    train = next((phase.change for phase in plan.phases if isinstance(phase.change, Train)), None)
    operators = [op for phase in plan.phases if isinstance(phase.change, Grow) for op in phase.change.operators]
    view = grown(read_architecture(plan.base.folder), operators)
    return PlanView(
        name=plan.name,
        base=BaseView(
            name=plan.base.name,
            family=plan.base.family,
            licence=plan.base.licence,
            parameters=plan.base.parameters,
            layers=plan.base.layers,
            hidden=plan.base.hidden,
            context=plan.base.native_context,
        ),
        parameters=plan.parameters,
        context=plan.context,
        phases=tuple(
            PhaseView(
                slug=phase.slug,
                stage=phase.stage,
                kind=phase.change.kind,
                title=phase.title,
                estimate=_estimate(phase.estimate),
            )
            for phase in plan.phases
        ),
        estimate=_estimate(plan.estimate),
        using_bytes=_using_bytes(view, plan.context),
        memory_limit_bytes=_memory_limit(plan, detect(runs)),
        trains=train.train if train else None,
        tokens=train.steps * train.windows_per_step * train.window if train else None,
        lora_rank=train.lora_rank if train and train.train == "lora" else None,
        notes=(*plan.notes, error_note(plan)),
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True),
    )


def _using_bytes(view: Blueprint, window: int) -> int:
    """Weights and the cache of one full window, two bytes a number as grown models are used."""
    return 2 * view.parameters + 2 * 2 * window * view.layers * view.kv_heads * view.head_dim


def _memory_limit(plan: Plan, machine: Hardware) -> int:
    share = min(plan.limits.memory_share, Contract().memory_share)
    limit = int((machine.vram_bytes or machine.ram_bytes) * share)
    return min(limit, plan.limits.memory or limit)


def _estimate(found: Estimate) -> EstimateView:
    return EstimateView(
        seconds=found.seconds, memory_bytes=found.memory_bytes, disk_bytes=found.disk_bytes, basis=found.basis
    )
