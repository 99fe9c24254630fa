"""How a sweep shows itself: a table that is redrawn on a terminal, lines of news in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ntkml.runs.sweep_states import DONE, ELSEWHERE, ENDED, FAILED, RUNNING, STOPPED, WAITING

if TYPE_CHECKING:
    from ntkml.runs.sweep_progress import CellProgress, SweepProgress

#: Seconds between two pictures of the table.
PAUSE = 0.5
#: What a table has room for before it says how many more there are.
LINES = 12


class Screen:
    """Standard error as a place for one table that changes, with lines of text above it."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._lines = 0
        self._drawn: float | None = None

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        click.echo(line, err=True)

    def draw(self, lines: list[str]) -> None:
        """The table in the place of the one before, not more often than every ``PAUSE`` seconds."""
        now = time.monotonic()
        if not self.live or (self._lines and self._drawn is not None and now - self._drawn < PAUSE):
            return
        width = shutil.get_terminal_size().columns - 1
        self.clear()
        click.echo("\n".join(line[:width] for line in lines), err=True)
        self._lines, self._drawn = len(lines), now

    def clear(self) -> None:
        """Take the table away."""
        if self._lines:
            click.echo(f"\x1b[{self._lines}A\x1b[J", nl=False, err=True, color=True)
            self._lines = 0


def shown(steps: Iterable[SweepProgress], screen: Screen) -> Iterator[SweepProgress]:
    """The steps of a sweep, shown as they come."""
    said: set[str] = set()
    try:
        for progress in steps:
            for one in progress.having(*ENDED):
                if not one.was_done and one.cell.run_id not in said:
                    said.add(one.cell.run_id)
                    screen.say(_news(one, progress))
            screen.draw(table(progress))
            yield progress
    finally:
        screen.clear()


def table(progress: SweepProgress) -> list[str]:
    """The summary, and a line for every cell that is in work."""
    open_cells = progress.having(RUNNING, ELSEWHERE)
    lines = [summary(progress)]
    for one in open_cells[:LINES]:
        epochs = one.cell.protocol.epochs
        share = one.epochs / epochs
        bar = "█" * round(16 * share) + "·" * (16 - round(16 * share))
        lines.append(f"  {one.status:<9} {bar} {one.epochs:>4}/{epochs:<4} {one.cell.label}")
    if len(open_cells) > LINES:
        lines.append(f"  and {len(open_cells) - LINES} more")
    return lines


def summary(progress: SweepProgress) -> str:
    """One line: how many cells have which status, and the time that is left."""
    counts = progress.counts
    parts = [f"{counts[DONE]} of {len(progress.cells)} cells done"]
    names = {RUNNING: "running", ELSEWHERE: "in other processes", WAITING: "waiting", FAILED: "failed"}
    parts += [f"{counts[status]} {words}" for status, words in names.items() if counts[status]]
    parts += [f"{duration(progress.elapsed)} passed"]
    left = progress.seconds_left
    if left:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the two largest units: ``45 s``, ``3 min 05 s``, ``2 h 10 min``, ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _news(one: CellProgress, progress: SweepProgress) -> str:
    label = one.cell.label
    if one.status == FAILED:
        return f"failed: {label}: {one.line}"
    if one.status == STOPPED:
        return f"stopped: {label} after {one.epochs} of {one.cell.protocol.epochs} epochs"
    return f"done: {label} ({summary(progress)})"
