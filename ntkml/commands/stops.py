"""Signals that ask a command to leave: at once, or, inside a run that keeps its state, after the step in progress.

SIGTERM and SIGUSR1 (what schedulers send before they kill) and SIGHUP (a terminal that is gone) end with exit code 75, "try
again later"; SIGINT with 130.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

#: Exit codes by the name of the signal; a name that a platform lacks is left alone.
EXIT_CODES = {"SIGTERM": 75, "SIGUSR1": 75, "SIGHUP": 75, "SIGINT": 130}


class Left(SystemExit):
    """Leaving at once because of a signal, with its exit code."""

    def __init__(self, name: str):
        super().__init__(EXIT_CODES[name])
        self.name = name


class Stops:
    """What the signals have asked for. Outside :meth:`after_the_step` a signal ends the command where it is."""

    def __init__(self) -> None:
        self._careful = False
        self._requested: str | None = None

    def requested(self) -> str | None:
        """The first signal that came inside :meth:`after_the_step`, or None."""
        return self._requested

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Only note signals: the code inside asks :meth:`requested` between its steps. A second SIGINT ends it anyway."""
        self._careful = True
        try:
            yield
        finally:
            self._careful = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        name = signal.Signals(number).name
        if self._careful and not (name == "SIGINT" and self._requested):
            self._requested = self._requested or name
        elif name == "SIGINT":
            raise KeyboardInterrupt
        else:
            raise Left(name)


def ignore_signals() -> None:
    """Leave the signals of :data:`EXIT_CODES` unheard from now on."""
    for name in EXIT_CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def orderly_stops(then: str = "") -> Iterator[Stops]:
    """Listen to the signals of :data:`EXIT_CODES` inside the block, in the main thread (no other one can).

    ``then``: what can be done after leaving at once, said behind the signal's name.
    """
    stops = Stops()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
        # Whoever started us with a signal ignored, as a shell does with SIGINT for jobs in the background and nohup with
        # SIGHUP, meant it.
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, stops.handle)
        yield stops
    except Left as leaving:
        click.echo(f"Stopped by {leaving.name}" + (f": {then}" if then else "."), err=True)
        raise
    except KeyboardInterrupt:
        click.echo("Interrupted" + (f": {then}" if then else "."), err=True)
        raise SystemExit(EXIT_CODES["SIGINT"]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
