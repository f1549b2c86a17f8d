"""Run a child process that cannot reach the network and cannot take more than it is given."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scaler_wizard.errors import ScalerError
from scaler_wizard.tied import die_with_parent

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET of unshare(2)
_PR_SET_NO_NEW_PRIVILEGES = 38


@dataclass(frozen=True)
class Bounds:
    """What the child may use."""

    cpu_seconds: int
    memory_bytes: int
    """Address space."""
    file_bytes: int
    """Largest file that it may write."""


def run_confined(command: Sequence[str], bounds: Bounds) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end, cut off from the network; refuses where that cannot be done (Linux only)."""
    if sys.platform != "linux":
        raise ScalerError("only Linux can cut a process off from the network here", "do this on a Linux machine")
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=bounds.cpu_seconds * 2 + 60,
            env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | _paths(),
            preexec_fn=lambda: _confine(bounds),
        )
    except subprocess.TimeoutExpired:
        raise ScalerError("the confined process did not end in time", "the file is not fit to be read") from None
    except subprocess.SubprocessError:
        raise ScalerError(
            "this system does not let a process be cut off from the network",
            "allow user namespaces, or convert the file on another machine",
        ) from None


def _paths() -> dict[str, str]:
    """No other variable reaches the child: tokens and keys live in the environment."""
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}


def _confine(bounds: Bounds) -> None:
    """In the child, before the command: no network, no new privileges, hard limits, gone with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace")
    libc.prctl(_PR_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    die_with_parent()
    for kind, most in (
        (resource.RLIMIT_CPU, bounds.cpu_seconds),
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_FSIZE, bounds.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
