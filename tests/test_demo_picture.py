from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scaler_wizard.run import Run

SCRIPT = Path(__file__).parent.parent / "scripts" / "demo_picture.py"


def put(runs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--runs", runs, "--out", out], capture_output=True, text=True, check=False
    )


def test_the_picture_in_the_documentation_is_that_of_the_newest_demo(own_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "demo.png"
    assert put(own_run.folder.parent, out).returncode != 0 and not out.exists()
    demo = own_run.folder.rename(own_run.folder.with_name("demo-20260101-000000-abcd"))
    assert put(demo.parent, out).returncode == 0
    assert out.read_bytes() == (demo / "report" / "nll_by_position.png").read_bytes()
