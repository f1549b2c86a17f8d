"""Turn dense feed-forward blocks into mixtures of experts that stock transformers runs.

Keeps: the function, in real arithmetic, except `DuplicateExperts`. Equal experts under weights that add up to one are
the dense block; a shared expert of twice the output behind a gate of one half is the dense block as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import FAMILIES, Blueprint, Place
from scaler_wizard.grow.operator import GrowthOperator, Preserves, refuse
from scaler_wizard.grow.surgery import Draft, merged, spread_of
from scaler_wizard.weights import Expression, Fill, Fresh, Program, Random, Scaled, Sum, columns, join, rows, zeros

PARTS = {
    **{"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"},
    **{part: part for part in ("gate_proj", "up_proj", "down_proj")},
}
"""Names of a feed-forward block's three matrices: Mixtral's and everybody else's."""
FUSED: Mapping[str, tuple[str, ...]] = {
    "input_linear": ("gate_proj", "up_proj"),
    "output_linear": ("down_proj",),
}
"""Granite's names, whose tensors hold several of these."""
NEXT_TO_ZERO = 1e-12
"""A gate at zero: its sigmoid is one half to the last bit, and llama.cpp computes sigmoid(x) as silu(x) / x."""
GONE = ("mlp_bias", "pretraining_tp", "rope_theta", "rope_scaling", "layer_types", "max_window_layers")
"""Keys that the mixtures' configurations do not have."""

Experts = Annotated[int, Field(ge=2, le=512)]
Noise = Annotated[float, Field(ge=0, le=1)]


class Upcycle(GrowthOperator):
    """Copy each feed-forward block into equal experts behind a random router: the family's own stock mixture."""

    title: ClassVar[str] = "equal experts"
    paper: ClassVar[str] = "sparse upcycling, arXiv:2212.05055; arXiv:2410.07524"
    trains_first: ClassVar[str] = (
        "Experts part slowly, by the tokens that the noisy router sends them; the router learns when they have."
    )

    op: Literal["upcycle"] = "upcycle"
    """Which operator."""
    experts: Experts = 4
    """Experts in each block."""
    active: Annotated[int, Field(ge=1, le=512)] = 2
    """Experts that each token uses."""
    router_noise: Noise = 0.02
    """Standard deviation of the router's weights; zero sends every token to the same experts."""

    @property
    def preserves(self) -> Preserves:
        """The experts' weights add up to one, up to rounding."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """The configuration of the family's mixture."""
        return _mixture(view, self.op, experts=self.experts, active=self.active, ffn=view.ffn)

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Copy the blocks, add the router; the first expert counts as old."""

        def expert(place: Place, dense: Expression) -> tuple[Expression, Fresh | None]:
            return dense, Fresh(whole=True) if place.expert else None

        return _mixed(view, self.resized(view), program, expert, self.router_noise)


class SplitIntoExperts(GrowthOperator):
    """Cut each feed-forward block into experts that are all active at first: a start for sparse training."""

    title: ClassVar[str] = "feed-forward blocks cut into experts"
    paper: ClassVar[str] = "MoEfication, arXiv:2110.01786"
    trains_first: ClassVar[str] = "The router, which starts at zero; then lower the number of active experts."

    op: Literal["split_into_experts"] = "split_into_experts"
    """Which operator."""
    experts: Experts
    """Experts in each block; they divide its neurons. A power of two keeps the weights' bits."""

    @property
    def preserves(self) -> Preserves:
        """The same sum in another order."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """The configuration of the family's mixture, with all experts active."""
        if view.ffn % self.experts:
            raise refuse(self.op, f"{self.experts} experts do not divide {view.ffn} neurons", "name a divisor")
        return _mixture(view, self.op, experts=self.experts, active=self.experts, ffn=view.ffn // self.experts)

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Cut the neurons, multiply the outputs by the number of experts."""
        size = view.ffn // self.experts

        def expert(place: Place, dense: Expression) -> tuple[Expression, Fresh | None]:
            start = (place.expert or 0) * size
            if place.row.role == "ffn_in":
                return rows(dense, start, start + size), None
            return Scaled(columns(dense, start, start + size), float(self.experts)), None

        return _mixed(view, self.resized(view), program, expert, 0.0)


class SharedExpert(GrowthOperator):
    """Keep the dense block as a shared expert and add routed experts that are distinct at once."""

    title: ClassVar[str] = "shared expert with new routed experts"
    paper: ClassVar[str] = "DeepSeekMoE, arXiv:2401.06066; Qwen2-MoE; Granite 3"
    trains_first: ClassVar[str] = "The new experts' output matrices, which start at zero; then the rest of them."

    op: Literal["shared_expert"] = "shared_expert"
    """Which operator."""
    experts: Experts = 4
    """Routed experts in each block."""
    active: Annotated[int, Field(ge=1, le=512)] = 2
    """Routed experts that each token uses."""
    size: Annotated[int, Field(ge=1, le=2**20)]
    """Neurons of a routed expert."""
    router_noise: Noise = 0.02
    """Standard deviation of the router's weights."""

    @property
    def preserves(self) -> Preserves:
        """Twice the output behind a gate of one half, or (Granite) the output as it is."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """The configuration of the family's mixture with a shared expert."""
        _refuse_source(view, self.op, SHARED)
        if self.active > self.experts:
            raise refuse(self.op, f"{self.active} of {self.experts} experts cannot be active", "lower `active`")
        return self._granite(view) if view.family == "granite" else self._qwen(view)

    def _granite(self, view: Blueprint) -> Blueprint:
        return _converted(
            view,
            "granitemoeshared",
            intermediate_size=self.size,
            shared_intermediate_size=view.ffn,
            num_local_experts=self.experts,
            num_experts_per_tok=self.active,
        )

    def _qwen(self, view: Blueprint) -> Blueprint:
        window = view.value("sliding_window")
        types = view.layer_types or [("sliding" if window else "full") + "_attention"] * view.layers
        return _converted(
            view,
            "qwen2_moe",
            moe_intermediate_size=self.size,
            shared_expert_intermediate_size=view.ffn,
            num_experts=self.experts,
            num_experts_per_tok=self.active,
            norm_topk_prob=False,
            qkv_bias=view.family == "qwen2",
            decoder_sparse_step=1,
            mlp_only_layers=[],
            layer_types=types,
            use_sliding_window="sliding_attention" in types,
            sliding_window=window,
            max_window_layers=view.value("max_window_layers") or 0,
        )

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Keep the dense block (doubled behind a gate at zero), add silent random experts and a router."""
        after = self.resized(view)
        shared = 2.0 if any(row.role == "shared_gate" for row in after.rows.rows) else 1.0

        def expert(place: Place, dense: Expression) -> tuple[Expression, Fresh | None]:
            if place.expert is None:
                return (Scaled(dense, shared) if place.row.role == "ffn_out" and shared != 1 else dense), None
            if place.row.role == "ffn_out":
                return zeros(place.shape, dense.dtype), Fresh(whole=True)
            return Random(place.shape, dense.dtype, spread_of(dense), place.name), Fresh(whole=True)

        return _mixed(view, after, program, expert, self.router_noise)


class DuplicateExperts(GrowthOperator):
    """Copy the experts of a mixture; as many as before are active."""

    title: ClassVar[str] = "duplicated experts"
    paper: ClassVar[str] = "expert upcycling, arXiv:2604.19835"
    trains_first: ClassVar[str] = (
        "Everything: copies share the tokens of their originals and part by the router's noise."
    )

    op: Literal["duplicate_experts"] = "duplicate_experts"
    """Which operator."""
    times: Annotated[int, Field(ge=2, le=16)] = 2
    """How many times as many experts."""
    router_noise: Noise = 0.02
    """Standard deviation of what is added to the copies' router rows."""

    @property
    def preserves(self) -> Preserves:
        """Copies of the best expert crowd out the second best."""
        return "no"

    def resized(self, view: Blueprint) -> Blueprint:
        """More experts."""
        if view.rows.experts is None or view.experts is None:
            raise refuse(self.op, f"{view.family} has no experts", "upcycle it first")
        return view.changed(**{view.rows.experts: view.experts * self.times})

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Copy experts; the router's new rows are copies with noise."""
        after = self.resized(view)
        experts = view.experts or 1
        draft = Draft(program)
        for place in after.places():
            if place.expert is not None and place.expert >= experts:
                origin = place.row.name.format(layer=place.layer, expert=place.expert % experts)
                draft.replace(place.name, program.tensors[origin], Fresh(whole=True))
            elif place.stack:
                tensor = program.tensors[place.name]
                draft.insert(place.name, 0, [(tensor.shape[0], tensor)] * (self.times - 1))
            elif place.row.role == "router":
                tensor = program.tensors[place.name]
                key = f"{place.name}#{experts}."
                noise = [
                    Random(tensor.shape, tensor.dtype, self.router_noise, f"{key}{n}") for n in range(1, self.times)
                ]
                draft.insert(place.name, 0, [(experts, Sum((tensor, part))) for part in noise])
        return draft.done(after)


Expert = Callable[[Place, Expression], tuple[Expression, Fresh | None]]
"""A matrix of the mixture from the dense block's matrix, and what of it is new."""


def _mixed(
    view: Blueprint, after: Blueprint, program: Program, expert: Expert, router_noise: float
) -> tuple[Blueprint, Program]:
    """A mixture's program: feed-forward matrices by `expert`, router and gate new, everything else as it is."""
    draft = Draft(Program(program.config, {}, {}, program.seed))
    for place in after.places():
        if place.name in program.tensors:
            draft.replace(place.name, program.tensors[place.name], program.fresh.get(place.name))
            continue
        dense = f"model.layers.{place.layer}.mlp.{{}}.weight"
        if place.row.role in ("router", "shared_gate"):
            dtype = program.tensors[dense.format("gate_proj")].dtype
            noise, rest = (router_noise, 0.0) if place.row.role == "router" else (0.0, NEXT_TO_ZERO)
            router = Random(place.shape, dtype, noise, place.name) if noise else Fill(place.shape, dtype, rest)
            draft.replace(place.name, router, Fresh(whole=True))
            continue
        if place.name.split(".")[-2] in FUSED:
            _fuse(draft, place, program, dense, expert)
            continue
        origin = dense.format(PARTS[place.name.split(".")[-2]])
        tensor, fresh = expert(place, program.tensors[origin])
        draft.replace(place.name, tensor, fresh or program.fresh.get(origin))
    return draft.done(after)


def _fuse(draft: Draft, place: Place, program: Program, dense: str, expert: Expert) -> None:
    """Gate and up projection of a block as one tensor, or those of all experts on one another."""
    parts = FUSED[place.name.split(".")[-2]]
    numbers = range(place.stack) if place.stack else [None]
    shape = (place.shape[0] // (len(parts) * len(numbers)), *place.shape[1:])
    made = [
        expert(
            replace(place, name=f"{place.name}#{number}.{part}", expert=number, shape=shape),
            program.tensors[dense.format(part)],
        )
        for number in numbers
        for part in parts
    ]
    stacked = join([tensor for tensor, _ in made], 0)
    ends = list(accumulate(tensor.shape[0] for tensor, _ in made))
    new = [(end - tensor.shape[0], end) for (tensor, fresh), end in zip(made, ends, strict=True) if fresh is not None]
    draft.replace(place.name, stacked, Fresh(rows=merged(new)))


MIXTURES: Mapping[str, str] = {
    "llama": "mixtral",
    "mistral": "mixtral",
    "qwen3": "qwen3_moe",
    "olmo2": "flex_olmo",
    "granite": "granitemoe",
}
"""The stock mixture that computes what a dense family does."""
SHARED: Mapping[str, str] = {
    "llama": "qwen2_moe",
    "mistral": "qwen2_moe",
    "qwen2": "qwen2_moe",
    "granite": "granitemoeshared",
}
"""The same with a shared expert."""


def _mixture(view: Blueprint, operator: str, *, experts: int, active: int, ffn: int) -> Blueprint:
    _refuse_source(view, operator, MIXTURES)
    if active > experts:
        raise refuse(operator, f"{active} of {experts} experts cannot be active", "lower `active`")
    family = FAMILIES[MIXTURES[view.family]]
    if family.model_type == "qwen3_moe" and "sliding_attention" in (view.layer_types or ()):
        raise refuse(operator, "qwen3_moe has one window for all layers", "use widen_ffn or identity_blocks")
    changes = {family.experts: experts, next(iter(family.keys.values())): ffn, "num_experts_per_tok": active}
    if "norm_topk_prob" in family.defaults:
        changes["norm_topk_prob"] = True  # the weights of the active experts must add up to one
    if family.model_type == "mixtral":
        changes["sliding_window"] = view.value("sliding_window")
    return _converted(view, family.model_type, **{str(key): value for key, value in changes.items()})


def _converted(view: Blueprint, model_type: str, **changes: Any) -> Blueprint:
    """Another family's configuration; what the two families assume differently is written down."""
    written: Mapping[str, Any] = {
        "model_type": model_type,
        "architectures": [FAMILIES[model_type].model_class],
        "head_dim": view.head_dim,
        "num_key_value_heads": view.kv_heads,
        "rms_norm_eps": view.value("rms_norm_eps"),
        "max_position_embeddings": view.native_context,
        "tie_word_embeddings": view.tied,
        "rope_parameters": view.rope,
        "attention_bias": view.value("attention_bias") or None,
    }
    return view.changed(**{**dict.fromkeys(GONE), **written, **changes})


def _refuse_source(view: Blueprint, operator: str, mixtures: Mapping[str, str]) -> None:
    cure = f"it works on {', '.join(mixtures)}; widen_ffn works on every family"
    if view.experts:
        raise refuse(operator, f"{view.family} is a mixture already", "use duplicate_experts or widen_ffn")
    if view.family not in mixtures:
        kind = "a shared expert" if operator == "shared_expert" else "equal experts"
        raise refuse(operator, f"{view.family} has no stock mixture with {kind} that computes the same", cure)
    has_place = any(row.when == "attention_bias" for row in FAMILIES[mixtures[view.family]].rows)
    if view.value("mlp_bias") or (view.value("attention_bias") and not has_place):
        raise refuse(operator, "the stock mixture has no place for this model's biases", "use widen_ffn")
