"""Put the picture of the newest demo run into the documentation: `make demo`, then `python scripts/demo_picture.py`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.run import list_runs

PICTURE = Path("report", "nll_by_position.png")


def newest_picture(runs: Path) -> Path:
    """The picture of the newest run of the demo (`demo-DATE-...`) that has got as far as its report."""
    found = [run / PICTURE for run in list_runs(runs) if run.name.startswith("demo-2") and (run / PICTURE).is_file()]
    if not found:
        raise ScalerError(f"{runs}: no finished demo here", "run it first: make demo")
    return max(found, key=lambda picture: picture.stat().st_mtime)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "demo.png")
    wish = parser.parse_args()
    source = newest_picture(wish.runs)
    shutil.copyfile(source, wish.out)
    print(f"{source} -> {wish.out}")
