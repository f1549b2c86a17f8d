"""Real pip, a real wheel, a folder in place of a package index: no network."""

import hashlib
import os
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from scaler_wizard.errors import ScalerError
from scaler_wizard.fetch import cache_folder, fetch_wheel

METADATA = "Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder: Path) -> str:
    path = folder / "tiny_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_text/text.txt", "In the beginning")
        wheel.writestr("tiny_text-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_text-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("tiny_text-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_a_wheel_is_fetched_once_and_then_comes_from_the_cache(index: Path, tmp_path: Path) -> None:
    sha256 = make_wheel(index)
    first = fetch_wheel("tiny-text", "1.0", sha256, cache=tmp_path / "cache")
    (index / first.name).unlink()
    second = fetch_wheel("tiny-text", "1.0", sha256, cache=tmp_path / "cache")
    assert first == second
    assert hashlib.sha256(second.read_bytes()).hexdigest() == sha256
    assert files(tmp_path / "cache") == [first.name]


def test_a_wheel_with_other_content_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    with pytest.raises(ScalerError, match="not the expected content"):
        fetch_wheel("tiny-text", "1.0", "0" * 64, cache=tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_a_wheel_damaged_in_the_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    sha256 = make_wheel(index)
    kept = fetch_wheel("tiny-text", "1.0", sha256, cache=tmp_path / "cache")
    kept.write_bytes(b"damaged")
    again = fetch_wheel("tiny-text", "1.0", sha256, cache=tmp_path / "cache")
    assert hashlib.sha256(again.read_bytes()).hexdigest() == sha256


def test_a_failing_pip_is_reported_in_two_lines(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match="pip could not download it") as caught:
        fetch_wheel("no-such-text", "1.0", "0" * 64, cache=tmp_path / "cache")
    assert len(str(caught.value).splitlines()) == 2
    assert files(tmp_path / "cache") == []


def test_a_python_without_pip_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ScalerError, match="ensurepip"):
        fetch_wheel("tiny-text", "1.0", "0" * 64, cache=tmp_path / "cache")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SCALER_CACHE", raising=False)
    assert cache_folder() == tmp_path / "scaler-wizard"
    monkeypatch.setenv("SCALER_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
