"""Widen the feed-forward blocks.

Keeps: the function, in real arithmetic. `pairs` adds neurons in opposite pairs, whose outputs cancel; `zero` adds
neurons whose outputs are zero; `net2net` splits old neurons in two (Net2Net, arXiv:1511.05641) unevenly, since equal
halves would learn the same for ever (LEMON, arXiv:2310.07999).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import Blueprint, Place, Segment
from scaler_wizard.grow.operator import GrowthOperator, Preserves, refuse
from scaler_wizard.grow.surgery import Draft, segment_spans, spread_of
from scaler_wizard.weights import Expression, Program, Random, Share, columns, cut, join, negate, zeros

LOW, HIGH = 0.25, 0.75  # share of a split neuron that its first half keeps


class WidenFfn(GrowthOperator):
    """More neurons in every feed-forward block (in every expert of a mixture)."""

    title: ClassVar[str] = "wider feed-forward blocks"
    paper: ClassVar[str] = "Net2Net, arXiv:1511.05641; LEMON, arXiv:2310.07999; arXiv:2308.06103"
    trains_first: ClassVar[str] = (
        "pairs: all new weights at once, in opposite directions; zero: the new output columns first, then their "
        "inputs; net2net: all weights, the halves part because they are uneven."
    )

    op: Literal["widen_ffn"] = "widen_ffn"
    """Which operator."""
    size: Annotated[int, Field(ge=1, le=2**24)]
    """Neurons afterwards."""
    split: Literal["pairs", "zero", "net2net"] = "pairs"
    """Where the new neurons come from."""

    @property
    def preserves(self) -> Preserves:
        """Sums get longer, so the last bits may change."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """A larger feed-forward size."""
        new = self.size - view.ffn
        if new <= 0:
            raise refuse(self.op, f"size {self.size} is not above the model's {view.ffn}", f"name more than {view.ffn}")
        if self.split == "pairs" and new % 2:
            raise refuse(self.op, f"pairs need an even number of new neurons (got {new})", f"try {self.size + 1}")
        if self.split == "net2net" and new > view.ffn:
            raise refuse(self.op, f"net2net at most doubles {view.ffn} neurons", "use split: pairs, or grow twice")
        key = next(iter(view.rows.keys.values()))
        return view.changed(**{key: self.size})

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Add the neurons."""
        after = self.resized(view)
        segment = next(iter(view.rows.keys))
        draft = Draft(program)
        for place in view.places():
            for axis, parts in enumerate(place.row.axes):
                if segment in parts:
                    self._widen(draft, view, place, axis, segment)
        return draft.done(after)

    def _widen(self, draft: Draft, view: Blueprint, place: Place, axis: int, segment: Segment) -> None:
        tensor = draft.tensors[place.name]
        ends = [end for name, _, end in segment_spans(view, place.row, axis) if name == segment]
        reads = place.row.role == "ffn_in"
        make = self._input_rows if reads else self._output_columns
        blocks = [(end, make(tensor, end, view, place)) for end in ends]
        if not reads and self.split == "net2net":
            draft.replace(place.name, _halves(tensor, self.size - view.ffn, view, place)[0])
        draft.insert(place.name, axis, blocks)

    def _input_rows(self, tensor: Expression, end: int, view: Blueprint, place: Place) -> Expression:
        new = self.size - view.ffn
        if self.split == "net2net":
            return cut(tensor, 0, end - view.ffn, end - view.ffn + new)
        if len(tensor.shape) == 1:
            return zeros((new,), tensor.dtype)
        fresh = new // 2 if self.split == "pairs" else new
        block = Random((fresh, tensor.shape[1]), tensor.dtype, spread_of(tensor), f"{place.name}#{end}")
        return join([block, block], 0) if self.split == "pairs" else block

    def _output_columns(self, tensor: Expression, end: int, view: Blueprint, place: Place) -> Expression:
        new = self.size - view.ffn
        if self.split == "zero":
            return zeros((tensor.shape[0], new), tensor.dtype)
        if self.split == "net2net":
            return _halves(tensor, new, view, place)[1]
        block = Random((tensor.shape[0], new // 2), tensor.dtype, spread_of(tensor), f"{place.name}#{end}")
        return join([block, negate(block)], 1)


def _halves(tensor: Expression, new: int, view: Blueprint, place: Place) -> tuple[Expression, Expression]:
    """All output columns, the first `new` of them times their shares; and what is left of these, for the new ones."""
    key = f"{place.name}#{view.ffn}"
    first = columns(tensor, 0, new)
    kept = join([Share(first, 1, LOW, HIGH, key), columns(tensor, new, tensor.shape[1])], 1)
    return kept, Share(first, 1, LOW, HIGH, key, rest=True)
