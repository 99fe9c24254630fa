"""How a run is asked to leave between two of its steps, and how it says that it did."""

from __future__ import annotations

from collections.abc import Callable

from ntkml.machine.messages import counted

#: Looked at between any two steps: the name of what asks for a stop ("SIGTERM"), or None.
StopRequest = Callable[[], str | None]


class Stopped(Exception):
    """A run left as it was asked to, with everything kept: ``epochs`` are finished, and ``steps`` of the next one."""

    def __init__(self, reason: str, epochs: int, steps: int):
        super().__init__(f"Stopped by {reason} after {counted(epochs, 'epoch')} and {counted(steps, 'step')}")
        self.reason, self.epochs, self.steps = reason, epochs, steps


def never() -> None:
    """A :data:`StopRequest` that asks for nothing."""
