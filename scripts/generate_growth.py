"""Write docs/reference/growth.md from the operators themselves, or check that it is fresh (`--check`).

A cell is what `scaler inspect` would say of a model of that family; `tests/test_growth_table.py` grows a real model
for every cell and compares its logits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from scaler_wizard.architecture import FAMILIES, Blueprint
from scaler_wizard.grow import OPERATORS
from scaler_wizard.inspection import Applies, applies, trials

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "growth.md"
MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "shared_intermediate_size": 96,
    "num_experts": 4,
    "num_local_experts": 4,
    "no_rope_layers": [1, 1, 1, 0],
    "use_sliding_window": False,
}
CELLS = {"bitwise": "same bits", "exact": "exact", "no": "changes"}
HEAD = """# Growth operators

What `scaler grow`, `scaler plan` and a run can do to a model, and what is left of it afterwards.

- **same bits**: not one bit of a logit changes.
- **exact**: the same function in real arithmetic; sums are longer, so the last bits of a logit may differ.
- **changes**: the function changes, and a run heals it.
- A number points to the reason why an operator cannot be used.

`scaler inspect MODEL` says the same of your model; every growth is proved on it before it is kept. SmolLM and SmolLM2
are `llama`. Parts of stacked experts (Granite) count as rows of one tall matrix.
"""


def page() -> str:
    """The reference page."""
    cells = {
        (name, family): applies(name, Blueprint({"model_type": family} | MODEL))
        for family in FAMILIES
        for name in OPERATORS
    }
    reasons = sorted({_reason(cell, family) for (_, family), cell in cells.items() if cell.reason})
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    lines = [HEAD, *_table(cells, numbers), ""]
    lines += [f"{number}. The family {reason}." for reason, number in numbers.items()]
    lines += ["", "## The operators", "", *_operators()]
    return "\n".join(lines) + "\n"


def _table(cells: dict[tuple[str, str], Applies], numbers: dict[str, int]) -> list[str]:
    rows = [
        "| `model_type` | " + " | ".join(f"`{name}`" for name in OPERATORS) + " |",
        "|---" * (len(OPERATORS) + 1) + "|",
    ]
    for family in FAMILIES:
        found = [cells[name, family] for name in OPERATORS]
        words = [CELLS[cell.preserves] if cell.preserves else f"– ({numbers[_reason(cell, family)]})" for cell in found]
        rows.append(f"| {family} | " + " | ".join(words) + " |")
    return rows


def _reason(cell: Applies, family: str) -> str:
    return (cell.reason or "").removeprefix(f"{family} ")


def _operators() -> list[str]:
    lines = []
    for name, kind in OPERATORS.items():
        settings = [(key, field) for key, field in kind.model_fields.items() if key != "op"]
        words = [f"`{key}`: {(field.description or '').rstrip('.')}" for key, field in settings]
        lines += [f"### `{name}`: {kind.title}", "", f"{(kind.__doc__ or '').strip()}", ""]
        lines += [
            f"- Source: {kind.paper}.",
            f"- Learns first: {kind.trains_first}",
            f"- Settings: {'; '.join(words)}.",
            "",
        ]
    return lines[:-1]


def main() -> int:
    """Write the page; with `--check` only compare."""
    assert all(next(iter(trials(name, Blueprint({"model_type": "llama"} | MODEL))), None) for name in OPERATORS)
    if "--check" not in sys.argv[1:]:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.name} is stale: make generate")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
