"""What is said to a person when their input cannot be used: what is wrong, then what to do."""

from __future__ import annotations


class ScalerError(Exception):
    """A slip that the user can mend: two lines, exit code 2, nothing changed on disk."""

    exit_code = 2

    def __init__(self, wrong: str, cure: str) -> None:
        super().__init__(f"{wrong}\n  → {cure}")
        self.wrong = wrong
        self.cure = cure

    def __reduce__(self) -> tuple[type[ScalerError], tuple[str, str]]:
        """So that another process can hand it over."""
        return type(self), (self.wrong, self.cure)


class Waiting(ScalerError):
    """The run stands at a gate or is paused; nothing is wrong."""

    exit_code = 3


class Full(ScalerError):
    """The disk is full, or would be, where no run waits: nothing was written."""


class Fault(ScalerError):
    """Ours to mend: something happened that should not."""

    exit_code = 1
