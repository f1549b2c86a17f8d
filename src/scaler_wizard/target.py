"""Find the growth that gives a model the size asked for: which operators, with which numbers, and why.

Sizes are arithmetic on the configuration; nothing is read. Preferred are bitwise, then exact operators; those that
change the model's function are used only where they are allowed by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scaler_wizard import wording
from scaler_wizard.architecture import Blueprint
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    OPERATORS,
    AddKvGroups,
    DuplicateLayers,
    GrowthOperator,
    HyperClone,
    IdentityBlocks,
    Preserves,
    StackLayers,
    Upcycle,
    WidenFfn,
    WidenHidden,
    grown,
    promise,
)
from scaler_wizard.recipe import ARROW, FIT, count, factor

TOLERANCE = 0.02  # share of the size asked for
LARGEST_FACTOR = 64
DEEPER_ALONE = 1.35  # up to here identity blocks alone, which are bitwise, leave depth and width in proportion
WIDER_FROM = 2.5  # from here the residual stream grows as well
USABLE = 0.90  # of a device's memory; the rest is for activations and kernels
CLOSE_NAME = 0.15  # "3B" may mean 3.2B
MOST_ALTERNATIVES = 3
FEWEST_EXPERTS, MOST_EXPERTS = 3, 16  # two are active: fewer than three would not be sparse
MOST_BLOCKS = 1024
SMALLEST_STEP = 8  # neurons
PRESERVING = tuple(name for name in OPERATORS if name not in ("stack_layers", "duplicate_layers", "duplicate_experts"))
WORDS = {
    "bitwise": "keeps every logit bit for bit",
    "exact": "keeps the function exactly; the last bits of a logit may change",
    "no": "changes the function, so that it must be healed",
}


@dataclass(frozen=True)
class Solution:
    """A growth that hits a size, explained in sentences; alternatives do the same in other ways."""

    title: str
    operators: tuple[GrowthOperator, ...]
    parameters: int
    """Exact number of parameters afterwards."""
    error: float
    """Distance from the size asked for, as a share of it; negative below."""
    preserves: Preserves
    view: Blueprint
    """The configuration afterwards."""
    reasons: tuple[str, ...]
    alternatives: tuple[Solution, ...] = ()


def solve(
    blueprint: Blueprint, parameters: int, *, context: int | None = None, allow: Sequence[str] | None = None
) -> Solution:
    """Choose the operators that bring a model to `parameters`; `allow` names the operators that may be used.

    `context` in tokens is the window whose key/value cache the sentences speak of; left out, the native one.
    """
    base = Blueprint(blueprint.config)
    _refuse_size(base, parameters)
    allowed = _allowed(allow)
    found = [option for option in _options(base, parameters, allowed) if option.operators]
    if not found:
        raise ScalerError(
            f"{base.family}: {', '.join(sorted(allowed))} cannot make {parameters:,} parameters of {base.parameters:,}",
            "ask for more, or allow widen_ffn or identity_blocks",
        )
    unique = {option.operators: option for option in reversed(found)}.values()
    ranked = sorted(unique, key=lambda option: _rank(option, base, parameters))
    explained = [_explained(option, base, parameters, context or base.native_context) for option in ranked]
    near = [option for option in explained[1:] if abs(option.error) <= max(TOLERANCE, abs(explained[0].error))]
    near.sort(key=lambda option: list(TITLES.values()).index(option.title))
    return replace(explained[0], alternatives=tuple(near[:MOST_ALTERNATIVES]))


def _refuse_size(base: Blueprint, parameters: int) -> None:
    if parameters <= base.parameters:
        raise ScalerError(
            f"{parameters:,} parameters are not above the model's {base.parameters:,}",
            f'growth only adds: ask for more, such as "1.5x" ({wording.size(base.parameters * 1.5)})',
        )
    if parameters > LARGEST_FACTOR * base.parameters:
        raise ScalerError(
            f"{parameters:,} parameters are {parameters / base.parameters:,.0f}x of the model's {base.parameters:,}",
            f"at most {LARGEST_FACTOR}x is grown; begin with a larger model",
        )


def _allowed(allow: Sequence[str] | None) -> frozenset[str]:
    unknown = [name for name in allow or () if name not in OPERATORS]
    if unknown:
        raise ScalerError(f"{unknown[0]}: no such operator", f"choose from {', '.join(OPERATORS)}")
    return frozenset(PRESERVING if allow is None else allow)


# -- reading what people write --------------------------------------------------------------------------------------


def parse_target(text: str, base: int) -> int:
    """Parameters that "1.5x", "200M" or "3B -> 7B" ask for, where the model has `base` of them."""
    arrow = ARROW.fullmatch(text.strip())
    if arrow:
        _check_name(arrow[1], _number(arrow[1], text), base)
    wanted = arrow[2] if arrow else text
    times = factor(wanted)
    return _number(wanted, text) if times is None else round(base * times)


def _check_name(name: str, said: int, base: int) -> None:
    if abs(said / base - 1) > CLOSE_NAME:
        raise ScalerError(
            f"{name} -> ...: the model has {wording.size(base)} parameters, not {name}",
            "check which model is meant, or leave the left side out",
        )


def _number(part: str, text: str) -> int:
    try:
        return count(part)
    except ValueError:
        raise ScalerError(
            f"{text!r:.80} is no size", 'write "1.5x", "200M", "3B -> 7B" or "fit 12 GB of VRAM at 16K context"'
        ) from None


def target_size(text: str, blueprint: Blueprint, *, item_bytes: int = 2, allow: Sequence[str] | None = None) -> int:
    """As `parse_target`, and "fit 12 GB of VRAM at 16K context": the largest size whose inference fits."""
    fit = FIT.fullmatch(text.strip())
    if not fit:
        return parse_target(text, blueprint.parameters)
    try:
        memory = count(fit[1], kilo=1024)
        context = count(fit[2], kilo=1024) if fit[2] else blueprint.native_context
    except ValueError:
        raise ScalerError(f"{text!r:.80}: sizes are not readable", 'write "fit 12 GB of VRAM at 16K context"') from None
    return largest_fitting(blueprint, memory, context=context, item_bytes=item_bytes, allow=allow)


def fit_context(text: str) -> int | None:
    """The context that "fit 12 GB of VRAM at 16K context" names; None for other sizes, and where it names none."""
    fit = FIT.fullmatch(text.strip())
    return count(fit[2], kilo=1024) if fit and fit[2] else None


def largest_fitting(
    blueprint: Blueprint, memory: int, *, context: int, item_bytes: int = 2, allow: Sequence[str] | None = None
) -> int:
    """The largest size whose preferred growth fits into `memory` bytes, weights and cache at `context`."""
    base = Blueprint(blueprint.config)

    def fits(view: Blueprint) -> bool:
        return inference_bytes(view, context, item_bytes=item_bytes) <= USABLE * memory

    if not fits(base):
        need = inference_bytes(base, context, item_bytes=item_bytes)
        raise ScalerError(
            f"{_gib(memory)} of memory: the model itself needs {_gib(need)} at {context} tokens, and {1 - USABLE:.0%} "
            "is kept free",
            "name more memory or a shorter context",
        )
    size = (int(USABLE * memory) - cache_bytes(base, context, item_bytes=item_bytes)) // item_bytes
    size = min(size, LARGEST_FACTOR * base.parameters)
    while size > base.parameters:  # downwards, since deeper models have larger caches: no bisection
        option = _quick(base, size, allow)
        if option is not None and fits(option.view):
            return size
        size = int(size * 0.99)
    raise ScalerError(
        f"{_gib(memory)} of memory: the model fills it already at {context} tokens", "name more or a shorter context"
    )


def _quick(base: Blueprint, parameters: int, allow: Sequence[str] | None) -> _Option | None:
    found = [option for option in _options(base, parameters, _allowed(allow)) if option.operators]
    return min(found, key=lambda option: _rank(option, base, parameters), default=None)


def inference_bytes(view: Blueprint, context: int, *, item_bytes: int = 2) -> int:
    """Weights and key/value cache of one sequence of `context` tokens."""
    return view.parameters * item_bytes + cache_bytes(view, context, item_bytes=item_bytes)


def cache_bytes(view: Blueprint, context: int, *, item_bytes: int = 2) -> int:
    """Key/value cache of one sequence; layers with a sliding window keep no more than that."""
    types = view.layer_types or ["full_attention"] * view.layers
    window = view.value("sliding_window") or context
    tokens = sum(min(context, window) if kind == "sliding_attention" else context for kind in types)
    return 2 * tokens * view.kv_heads * view.head_dim * item_bytes


def active_parameters(view: Blueprint) -> int:
    """Parameters that one token is multiplied with: no embedding table, and only the experts that are active."""
    active = 0
    for row in view.rows.rows:
        if not view.exists(row) or (row.role == "embedding" and not view.tied):
            continue
        copies = view.layers if "{layer}" in row.name else 1
        copies *= view.count("num_experts_per_tok") if "{expert}" in row.name or row.stacked else 1
        active += math.prod(view.shape(row)) * copies // (view.experts or 1 if row.stacked else 1)
    return active


# -- options --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """A model, perhaps widened already, whose depth and feed-forward size are still open: size is bilinear in them."""

    operators: tuple[GrowthOperator, ...]
    view: Blueprint

    @cached_property
    def layer(self) -> int:
        return self.view.changed(num_hidden_layers=self.view.layers + 1).parameters - self.view.parameters

    @cached_property
    def neuron(self) -> int:
        """Parameters of one feed-forward neuron of one layer, in all experts."""
        key = next(iter(self.view.rows.keys.values()))
        more = self.view.changed(**{key: self.view.ffn + 1}).parameters - self.view.parameters
        return more // self.view.layers

    @cached_property
    def ends(self) -> int:
        """Parameters outside the layers."""
        return self.view.parameters - self.view.layers * self.layer

    @cached_property
    def ffn(self) -> int:
        """Neurons of a layer, or of one expert."""
        return self.view.ffn

    def size(self, layers: int, ffn: int) -> int:
        """Parameters with so many layers and neurons."""
        return self.ends + layers * (self.layer + self.neuron * (ffn - self.ffn))

    def ffn_for(self, parameters: int, layers: int, step: int) -> int:
        """Neurons that come closest, in multiples of `step`; those of the model where fewer would do."""
        exact = self.ffn + ((parameters - self.ends) / layers - self.layer) / self.neuron
        return max(round(exact / step) * step, self.ffn)


@dataclass(frozen=True)
class _Option:
    kind: str
    operators: tuple[GrowthOperator, ...]
    view: Blueprint

    @cached_property
    def parameters(self) -> int:
        return self.view.parameters

    def ratios(self, base: Blueprint) -> tuple[float, float, float, float]:
        """How much deeper, wider in the blocks, wider in the stream, and richer in heads."""
        pairs = [(self.view.layers, base.layers), (_neurons(self.view), _neurons(base))]
        pairs += [(self.view.hidden, base.hidden), (self.view.heads, base.heads)]
        depth, ffn, hidden, heads = (new / old for new, old in pairs)
        return depth, ffn, hidden, heads


def _neurons(view: Blueprint) -> int:
    return view.ffn * (view.experts or 1)


def _options(base: Blueprint, parameters: int, allowed: frozenset[str]) -> Iterator[_Option]:
    """Every way that is worth comparing, the best of each kind."""
    plain = _Frame((), base)
    yield from _filled(plain, base, parameters, allowed, ("deeper", "wider", "both"))
    if "stack_layers" in allowed:
        yield from _stacked(base, parameters)
    if "duplicate_layers" in allowed:
        yield from _repeated(base, parameters)
    widened = _frames(base, _widenings(base, parameters / base.parameters, allowed))
    yield from _best(_of_kind("stream", frame, base, parameters, allowed) for frame in widened)(base, parameters)
    if "hyper_clone" in allowed:
        clones = _frames(base, ((HyperClone(times=times),) for times in range(2, 9)))
        yield from _best(_of_kind("clone", frame, base, parameters, allowed) for frame in clones)(base, parameters)
    if "upcycle" in allowed:
        mixtures = _frames(base, ((Upcycle(experts=experts),) for experts in range(FEWEST_EXPERTS, MOST_EXPERTS + 1)))
        yield from _best(_of_kind("experts", frame, base, parameters, allowed) for frame in mixtures)(base, parameters)


def _frames(base: Blueprint, chains: Iterable[tuple[GrowthOperator, ...]]) -> Iterator[_Frame]:
    """What the family allows of these chains."""
    for chain in chains:
        try:
            yield _Frame(chain, grown(base, chain))
        except ScalerError:
            continue  # the operator's own refusal: this family or these sizes cannot do it


def _best(groups: Iterable[Iterator[_Option]]) -> Callable[[Blueprint, int], list[_Option]]:
    def choose(base: Blueprint, parameters: int) -> list[_Option]:
        every = [option for group in groups for option in group]
        return sorted(every, key=lambda option: _fit(option, base, parameters))[:1]

    return choose


def _of_kind(kind: str, frame: _Frame, base: Blueprint, parameters: int, allowed: frozenset[str]) -> Iterator[_Option]:
    if frame.view.parameters <= parameters * (1 + TOLERANCE):
        for option in _filled(frame, base, parameters, allowed, ("deeper", "wider", "both", "bare")):
            yield replace(option, kind=kind)


def _filled(
    frame: _Frame, base: Blueprint, parameters: int, allowed: frozenset[str], ways: tuple[str, ...]
) -> Iterator[_Option]:
    """Add blocks, neurons, or both to a frame until it has the size."""
    view = frame.view
    blocks = round((parameters - view.parameters) / frame.layer)
    deep, wide = "identity_blocks" in allowed, "widen_ffn" in allowed
    shapes: dict[str, tuple[int, int]] = {"bare": (view.layers, view.ffn)}
    if deep:
        shapes["deeper"] = (view.layers + min(max(blocks, 1), MOST_BLOCKS), view.ffn)
    if wide:
        shapes["wider"] = (view.layers, max(_finest(frame, parameters, view.layers), view.ffn + SMALLEST_STEP))
    if deep and wide:
        shapes["both"] = _balanced(frame, base, parameters, min(max(blocks, 0), MOST_BLOCKS))
    for way in ways:
        if way in shapes:
            yield from _option(way, frame, *shapes[way])


def _balanced(frame: _Frame, base: Blueprint, parameters: int, most: int) -> tuple[int, int]:
    """Layers and neurons that hit the size with depth and width in the base's proportions."""
    layers = range(frame.view.layers, frame.view.layers + most + 1)
    shapes = [(number, _finest(frame, parameters, number)) for number in layers]

    old_layers, old_neurons = base.layers, _neurons(base)
    experts = frame.view.experts or 1

    def cost(shape: tuple[int, int]) -> tuple[bool, float]:
        miss = abs(frame.size(*shape) / parameters - 1)
        skew = abs(math.log((shape[0] / old_layers) / (shape[1] * experts / old_neurons)))
        return miss > TOLERANCE, 10 * miss + skew

    return min(shapes, key=cost)


def _finest(frame: _Frame, parameters: int, layers: int) -> int:
    """Neurons in the coarsest steps that come close: hardware likes multiples of 128 and 64; less only for the size."""
    largest = 128 if frame.ffn >= 1024 else 64 if frame.ffn >= 256 else 32
    steps = [step for step in (128, 64, 32, 16, SMALLEST_STEP) if step <= largest]
    found = [frame.ffn_for(parameters, layers, step) for step in steps]
    misses = [abs(frame.size(layers, ffn) / parameters - 1) for ffn in found]
    for smallest, limit in ((64, TOLERANCE / 2), (64, TOLERANCE), (SMALLEST_STEP, TOLERANCE / 2)):
        for step, ffn, miss in zip(steps, found, misses, strict=True):
            if step >= smallest and miss <= limit:
                return ffn
    return found[-1]


def _option(way: str, frame: _Frame, layers: int, ffn: int) -> Iterator[_Option]:
    chain = list(frame.operators)
    if layers > frame.view.layers:
        chain.append(IdentityBlocks(blocks=layers - frame.view.layers))
    if ffn > frame.view.ffn:
        chain.append(WidenFfn(size=ffn, split="zero" if (ffn - frame.view.ffn) % 2 else "pairs"))
    try:
        yield _Option(way, tuple(chain), grown(frame.view, chain[len(frame.operators) :]))
    except ScalerError:
        return  # more blocks or neurons than the operators make


def _stacked(base: Blueprint, parameters: int) -> Iterator[_Option]:
    frame = _Frame((), base)
    layers = base.layers + round((parameters - base.parameters) / frame.layer)
    chains = ((StackLayers(layers=layers, method=method),) for method in ("solar", "midas", "g_stack"))
    for stacked in _frames(base, chains if layers > base.layers else ()):
        yield _Option("stacked", stacked.operators, stacked.view)
        return


def _repeated(base: Blueprint, parameters: int) -> Iterator[_Option]:
    """Layers in the middle, each once more: a first guess, since which cost least must be measured."""
    count = round((parameters - base.parameters) / _Frame((), base).layer)
    if 1 <= count <= base.layers:
        start = (base.layers - count) // 2
        chain = (DuplicateLayers(layers=tuple(range(start, start + count))),)
        yield _Option("repeated", chain, grown(base, chain))


def _widenings(base: Blueprint, times: float, allowed: frozenset[str]) -> Iterator[tuple[GrowthOperator, ...]]:
    """Wider streams with more key/value groups, near the cube root of the growth: depth and widths share it."""
    if "widen_hidden" not in allowed:
        return
    share = times ** (1 / 3)
    most = round(base.kv_heads * share) + 1 if "add_kv_groups" in allowed else base.kv_heads
    for kv_heads in range(base.kv_heads, most + 1):
        heads = kv_heads * (base.heads // base.kv_heads)
        step = 64 if base.hidden >= 512 else 32 if base.hidden >= 128 else 16
        step = math.lcm(step, heads, base.heads) if base.rows.heads_divide_hidden else step
        for hidden in {math.floor(base.hidden * share / step) * step, math.ceil(base.hidden * share / step) * step}:
            if hidden > base.hidden:
                more = kv_heads - base.kv_heads
                yield (WidenHidden(size=hidden), *([AddKvGroups(groups=more)] if more else []))


# -- choosing -------------------------------------------------------------------------------------------------------


def _miss(option: _Option, parameters: int) -> float:
    return abs(option.parameters / parameters - 1)


def _skew(option: _Option, base: Blueprint) -> float:
    ratios = [math.log(ratio) for ratio in option.ratios(base)]
    return max(ratios) - min(ratios)


def _fit(option: _Option, base: Blueprint, parameters: int) -> tuple[bool, float]:
    """Among options of one kind: hit the size, then keep the base's proportions; a mixture stays quick instead."""
    miss = _miss(option, parameters)
    mixture = option.kind == "experts"  # the point of a mixture is that a token meets little of it
    skew = math.log(active_parameters(option.view) / active_parameters(base)) if mixture else _skew(option, base)
    return miss > TOLERANCE, 10 * miss + skew


def _rank(option: _Option, base: Blueprint, parameters: int) -> tuple[bool, float, int, float]:
    """Among kinds: hit the size, then the order that the growth's factor asks for, then the size itself."""
    times = parameters / base.parameters
    order = ["both", "deeper", "wider", "stream", "clone", "experts"]
    if times <= DEEPER_ALONE and option.view.layers <= DEEPER_ALONE * base.layers:
        order = ["deeper", "both", "wider", "stream", "clone", "experts"]
    if times > WIDER_FROM:
        order = ["stream", "both", "clone", "deeper", "wider", "experts"]
    order = ["repeated", "stacked", *order]  # they are there only where they were allowed by name
    miss = _miss(option, parameters)
    missed = miss > TOLERANCE
    return missed, miss if missed else 0.0, order.index(option.kind), miss


# -- explaining -----------------------------------------------------------------------------------------------------

TITLES = {  # alternatives are shown in this order
    "both": "depth and feed-forward width together",
    "deeper": "depth only",
    "stream": "all widths and depth",
    "experts": "a mixture of experts",
    "clone": "cloned widths",
    "wider": "feed-forward width only",
    "stacked": "stacked layers",
    "repeated": "repeated layers",
}


def _explained(option: _Option, base: Blueprint, parameters: int, context: int) -> Solution:
    error = option.parameters / parameters - 1
    kept = promise(option.operators)
    reasons = [_size(option, base, parameters), _shape(option, base), f"It {WORDS[kept]}.", _cost(option, base)]
    reasons += [_cache(option, base, context), *_notes(option, base, error)]
    return Solution(TITLES[option.kind], option.operators, option.parameters, error, kept, option.view, tuple(reasons))


def _size(option: _Option, base: Blueprint, parameters: int) -> str:
    off = option.parameters / parameters - 1
    side = "above" if off > 0 else "below"
    return (
        f"{option.parameters:,} parameters, {option.parameters / base.parameters:.2f}x of {base.parameters:,}, "
        f"{abs(off):.1%} {side} the {parameters:,} asked for."
    )


def _shape(option: _Option, base: Blueprint) -> str:
    view = option.view
    pairs = [
        ("layers", base.layers, view.layers),
        ("hidden size", base.hidden, view.hidden),
        ("query heads", base.heads, view.heads),
        ("key/value heads", base.kv_heads, view.kv_heads),
        ("feed-forward neurons", base.ffn, view.ffn),
        ("experts", base.experts or 1, view.experts or 1),
    ]
    return "; ".join(f"{name} {old} -> {new}" for name, old, new in pairs if new != old) + "."


def _cost(option: _Option, base: Blueprint) -> str:
    more = active_parameters(option.view) / active_parameters(base) - 1
    return f"{more:.0%} more arithmetic per token."


def _cache(option: _Option, base: Blueprint, context: int) -> str:
    before, after = cache_bytes(base, context), cache_bytes(option.view, context)
    if before == after:
        return f"The key/value cache stays at {_mib(before)} for {context} tokens (16-bit)."
    return f"The key/value cache grows from {_mib(before)} to {_mib(after)} for {context} tokens (16-bit)."


def _notes(option: _Option, base: Blueprint, error: float) -> Iterator[str]:
    depth, ffn, hidden, _ = option.ratios(base)
    if abs(error) > TOLERANCE:
        frame = _Frame((), option.view)
        yield (
            f"This is the closest that was found: one block has {frame.layer:,} parameters, "
            f"one feed-forward step of {SMALLEST_STEP} neurons {SMALLEST_STEP * frame.neuron * option.view.layers:,}."
        )
    match option.kind:
        case "deeper" if depth > DEEPER_ALONE:
            yield f"For: old weights are untouched. Against: {depth:.2f}x deeper at the same width, so slow per token."
        case "deeper":
            yield f"For: old weights are untouched, and {depth:.2f}x the depth leaves it in proportion to the width."
        case "wider":
            yield f"For: quick per token, no larger cache. Against: {ffn:.2f}x wider at the same depth learns less."
        case "both":
            yield f"For: depth ({depth:.2f}x) and width of the blocks ({ffn:.2f}x) share the growth."
        case "stream":
            yield f"For: the residual stream gets {hidden:.2f}x wider, so that {WIDER_FROM}x and more is not lopsided."
        case "clone":
            yield "For: all widths in proportion. Against: clones part slowly; halve the learning rate."
        case "experts":
            active = wording.size(active_parameters(option.view))
            yield f"For: only {active} parameters work on a token. Against: all are in memory; experts part slowly."
        case "repeated":
            yield "For: the smallest jump of the loss among ways to repeat layers. Against: it jumps all the same."
        case "stacked":
            yield "For: often the lowest loss after healing. Against: the loss jumps first."


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
