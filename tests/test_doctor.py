import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import called
from scaler_wizard import doctor
from scaler_wizard.doctor import findings, largest_trained, write_speed
from scaler_wizard.estimate import training_bytes
from scaler_wizard.hardware import GIB


def scaler(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "scaler_wizard", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_the_doctor_answers_quickly_and_without_torch(tmp_path: Path) -> None:
    answer = scaler("doctor", "--runs", str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert {"python", "memory", "disk", "torch", "training"} <= {
        line[4:].split(":")[0] for line in answer.stdout.splitlines()
    }
    loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines() if line.startswith("import time")}
    assert "scaler_wizard.doctor" in loaded
    assert not loaded & {"torch", "transformers", "peft"}


def test_the_doctor_speaks_json(tmp_path: Path) -> None:
    rows = json.loads(called("doctor", "--json", "--runs", tmp_path).stdout)
    assert all(set(row) == {"good", "what", "found", "cure"} for row in rows)
    assert next(row for row in rows if row["what"] == "python")["found"].startswith(sys.version.split()[0])


def test_a_runs_folder_that_does_not_exist_yet_is_looked_at_and_not_made(tmp_path: Path) -> None:
    found = {row.what: row for row in findings(tmp_path / "a" / "b")}
    assert found["disk"].good
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_cannot_be_written_is_said_with_a_cure() -> None:
    found = {row.what: row for row in findings(Path("/proc/sys"))}
    assert not found["disk"].good
    assert "--runs" in (found["disk"].cure or "")


def test_a_cache_that_cannot_be_written_is_said_with_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALER_CACHE", str(tmp_path / "file" / "cache"))
    found = {row.what: row for row in findings(tmp_path)}
    assert not found["cache"].good
    assert "SCALER_CACHE" in (found["cache"].cure or "")


def test_the_disk_probe_leaves_nothing(tmp_path: Path) -> None:
    assert write_speed(tmp_path, limit_s=0.01) > 0
    assert list(tmp_path.iterdir()) == []


def test_what_trains_follows_from_the_estimate() -> None:
    for limit in (2 * GIB, 8 * GIB, 24 * GIB, 80 * GIB):
        shapes = {name: shape for name, *shape in doctor.SHAPES}
        order = list(shapes)
        for window, name in largest_trained(limit, has_bfloat16=True):
            assert training_bytes(doctor._llama(shapes[name]), doctor._adapters(window, "bfloat16")) <= limit
            for larger in order[order.index(name) + 1 :]:
                assert training_bytes(doctor._llama(shapes[larger]), doctor._adapters(window, "bfloat16")) > limit
    assert largest_trained(GIB // 2, has_bfloat16=True) == []
    much, little, wide = (largest_trained(size * GIB, has_bfloat16=fast) for size, fast in ((80, 1), (8, 1), (8, 0)))
    assert dict(much) != dict(little) != dict(wide)


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    code = "import sys; import scaler_wizard.doctor as d; print(d.torch_build()); assert 'torch' not in sys.modules"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import torch

    expected = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "processors only"
    assert expected in answer.stdout or sys.platform == "darwin"
