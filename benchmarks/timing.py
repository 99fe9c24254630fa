"""Interleaved timing: every round runs all systems once, so that a busy machine slows them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds, and the median over the rounds of the ratio to the first system of the same round."""

    cpu_seconds: float
    wall_seconds: float
    ratio: float


def interleaved(
    steps: Mapping[str, Callable[[], object]], repeats: int, least_seconds: float = 0.02
) -> dict[str, Timing]:
    """Time ``steps`` in turn, ``repeats`` rounds; the first is what the others are compared with.

    Every step runs once before, to warm up; a step shorter than ``least_seconds`` is repeated within a round until it fills
    them, because the clock of a process is coarse.
    """
    counts = {}
    for name, step in steps.items():
        step()
        cpu, _ = _once(step, 1)
        counts[name] = max(1, min(1000, round(least_seconds / max(cpu, 1e-6))))
    rounds = [{name: _once(step, counts[name]) for name, step in steps.items()} for _ in range(repeats)]
    first = next(iter(steps))
    return {
        name: Timing(
            median(r[name][0] for r in rounds),
            median(r[name][1] for r in rounds),
            median(r[name][0] / r[first][0] for r in rounds),
        )
        for name in steps
    }


def _once(step: Callable[[], object], count: int) -> tuple[float, float]:
    """CPU and wall seconds of one call, averaged over ``count`` of them."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(count):
        step()
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count
