"""Hold a process to its memory limit, so that it hears of it as an error that it can act on, before anyone kills it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(limit_bytes: int) -> Iterator[None]:
    """While inside, memory beyond the limit is refused (Linux: private data of this process, RLIMIT_DATA).

    Elsewhere nothing is refused: there the supervisor's own watch is all there is.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (limit_bytes, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def hand_back() -> None:
    """Return freed memory to the system (glibc): what loading a model left lies in pieces, and would stay beside it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
