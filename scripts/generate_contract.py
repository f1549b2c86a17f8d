"""Write docs/contract.md from the contract's own text, or check that it is fresh (`--check`)."""

from __future__ import annotations

import sys
from pathlib import Path

from scaler_wizard.contract import VERSION, Contract

PAGE = Path(__file__).parents[1] / "docs" / "contract.md"


def page() -> str:
    """The contract page, with the numbers of an unchanged contract."""
    return (
        f"# The human contract, version {VERSION}\n\n"
        "What every run promises to the person who signs it. A recipe can tighten these numbers and never widen them;\n"
        "a run without a valid signature for exactly these words does not start.\n\n"
        f"{Contract().text()}"
    )


def main() -> int:
    """Write the page; with `--check` only compare."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.name} is stale: make generate")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
