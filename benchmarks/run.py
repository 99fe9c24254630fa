"""One suite from cases to rows: check that all systems give one number, then time them, then their memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.cases import Case, problem
from benchmarks.memory import peak_mib
from benchmarks.systems import OURS, PLAIN, SYSTEMS, Result, Step, System
from benchmarks.table import Row
from benchmarks.timing import interleaved
from ntkml.parameters import trainable_parameters

#: Largest relative difference to ntkml that float32 rows and factorisations explain; beyond it a system is not timed.
TOLERANCE = 5e-3


def measure(
    cases: list[Case], repeats: int, data_root: str | None, memory: bool, say: Callable[[str], None] = print
) -> Iterator[Row]:
    """Rows of all cases; a system whose package is missing is named once and left out."""
    present = []
    for system in SYSTEMS:
        if system.version is None:
            say(f"{system.name}: skipped, {system.package} is not installed (pip install '.[bench]')")
        else:
            present.append(system)
    for number, case in enumerate(cases, 1):
        say(f"[{number}/{len(cases)}] {case.name}")
        yield from _rows(case, present, repeats, data_root, memory, say)


def _rows(
    case: Case, present: list[System], repeats: int, data_root: str | None, memory: bool, say: Callable[[str], None]
) -> Iterator[Row]:
    able = [s for s in present if s.can(case.work, case.network, case.num_inputs)]
    steps: dict[str, Step] = {s.name: s.prepare(problem(case, data_root)) for s in able}
    num_params = sum(
        weights.numel() for weights in trainable_parameters(problem(replace(case, data="random")).model).values()
    )
    differences = _check(steps, say)
    timings = interleaved({name: steps[name] for name in (PLAIN.name, *differences)}, repeats)
    versions = {s.name: s.version or "" for s in able}
    for name, timing in timings.items():
        yield Row(
            case=case.name,
            network=case.network,
            num_params=num_params,
            num_inputs=case.num_inputs,
            views=case.views,
            estimator=case.estimator,
            data=case.data,
            system=name,
            version=versions[name],
            cpu_seconds=timing.cpu_seconds,
            wall_seconds=timing.wall_seconds,
            ratio=timing.ratio,
            peak_mib=peak_mib(name, case) if memory else None,
            difference=differences.get(name),
            repeats=repeats,
            threads=torch.get_num_threads(),
        )


def _check(steps: dict[str, Step], say: Callable[[str], None]) -> dict[str, float | None]:
    """Relative differences from ntkml, None for ntkml itself; what fails or differs is named and left out."""
    own = steps[OURS.name]()
    found: dict[str, float | None] = {OURS.name: None}
    for name, step in steps.items():
        if name in (PLAIN.name, OURS.name):
            continue
        try:
            apart = difference(own, step())
        except Exception as error:  # whatever another package raises must not end the run
            say(f"  {name}: left out, it failed with {type(error).__name__}: {str(error).splitlines()[:1]}")
            continue
        if apart > TOLERANCE:
            say(f"  {name}: left out, its value or gradient differs by {apart:.1e} from ntkml's")
        else:
            found[name] = apart
    return found


def difference(ours: Result, theirs: Result) -> float:
    """The larger of the relative differences of two values and of two gradients (to the largest entry of ``ours``).

    Infinite where something is NaN.
    """
    assert ours is not None
    assert theirs is not None
    value = abs(theirs[0] - ours[0]) / abs(ours[0])
    expected, found = (result[1].detach().double().cpu() for result in (ours, theirs))
    gradient = float((found - expected).abs().max() / expected.abs().max())
    return math.inf if math.isnan(value) or math.isnan(gradient) else max(value, gradient)


def error_line(message: str) -> None:
    """One line on standard error."""
    print(message, file=sys.stderr)
