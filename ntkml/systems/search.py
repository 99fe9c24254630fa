"""Plain search: which hyperparameter to fit next, given what the fits before it reached on the validation part.

A grid, random draws, or black-box search by optuna (its TPE and Gaussian-process samplers; the extra ``search`` installs
it). Prior precisions are searched on a logarithmic scale, rotations by U[-angle, angle] in degrees on a linear one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ntkml.randomness import generator_for
from ntkml.system_specs import PRIOR, SystemSpec

#: Searched ranges: prior precision, and half-width of the rotation in degrees.
PRIOR_RANGE, ROTATION_RANGE = (1e-2, 1e3), (0.0, 180.0)

#: Grid values of a cross-validation; its number counts folds.
CROSS_VALIDATED_VALUES = 5

#: value -> what a fit with it reaches, higher is better.
Reached = Callable[[float], float]


def best_value(spec: SystemSpec, hparam: str, seed: int, reached: Reached) -> float:
    """The best of the values that a search tries, of equals the first.

    Raises:
        ValueError: optuna is needed and not installed.
    """
    tried: dict[float, float] = {}

    def evaluate(value: float) -> float:
        if value not in tried:
            tried[value] = reached(value)
        return tried[value]

    _STRATEGIES[spec.family](spec, hparam, seed, evaluate)
    return max(tried, key=lambda value: tried[value])


def grid_values(hparam: str, count: int) -> list[float]:
    """``count`` values from end to end of the range; a single one is its middle."""
    places = [index / (count - 1) for index in range(count)] if count > 1 else [0.5]
    return [_value(hparam, place) for place in places]


def _value(hparam: str, place: float) -> float:
    """The value at ``place`` in [0, 1] of the range; degrees are whole numbers, precisions have four digits."""
    low, high = PRIOR_RANGE if hparam == PRIOR else ROTATION_RANGE
    if hparam != PRIOR:
        return float(round(low + place * (high - low)))
    return float(f"{math.exp(math.log(low) + place * (math.log(high) - math.log(low))):.4g}")


def _grid(spec: SystemSpec, hparam: str, seed: int, evaluate: Reached) -> None:
    for value in grid_values(hparam, spec.count):
        evaluate(value)


def _cross_validation(spec: SystemSpec, hparam: str, seed: int, evaluate: Reached) -> None:
    for value in grid_values(hparam, CROSS_VALIDATED_VALUES):
        evaluate(value)


def _random(spec: SystemSpec, hparam: str, seed: int, evaluate: Reached) -> None:
    places = torch.rand(spec.count, generator=generator_for(seed, "search"))
    for place in places.tolist():
        evaluate(_value(hparam, place))


def _optuna(spec: SystemSpec, hparam: str, seed: int, evaluate: Reached) -> None:
    optuna = _imported(spec)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}
    # Optuna begins with ten random trials, which would be all of a short search.
    sampler = samplers[spec.family](seed=seed, n_startup_trials=min(10, max(1, spec.count // 2)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(spec.count):
        trial = study.ask()
        study.tell(trial, evaluate(_value(hparam, trial.suggest_float("place", 0.0, 1.0))))


def _imported(spec: SystemSpec) -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError(f"{spec} needs optuna: pip install 'ntkml[search]'") from None
    return optuna


def folds(num_data: int, count: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Training and validation indices of every fold.

    Raises:
        ValueError: fewer than two folds, or more than data.
    """
    check_folds(num_data, count)
    parts = torch.randperm(num_data, generator=generator_for(seed, "validation")).chunk(count)
    for index, part in enumerate(parts):
        yield torch.cat([other for place, other in enumerate(parts) if place != index]), part


def check_folds(num_data: int, count: int) -> None:
    """Raise ValueError for fewer than two folds, or more than data."""
    if not 2 <= count <= num_data:
        raise ValueError(f"cross-validation takes 2 to {num_data} folds, got {count}")


_STRATEGIES: dict[str, Callable[[SystemSpec, str, int, Reached], None]] = {
    "grid": _grid,
    "random": _random,
    "tpe": _optuna,
    "gp": _optuna,
    "cross-validation": _cross_validation,
}
