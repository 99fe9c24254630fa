"""Types of command-line options: names of estimators, with completion, and positive numbers."""

from __future__ import annotations

import math
from typing import Any

import click
from click.shell_completion import CompletionItem

from ntkml.registry import STRUCTURES
from ntkml.specs import GROUPINGS, NO_ESTIMATOR, parse_estimator


class PositiveNumber(click.FloatRange):
    """A positive, finite number; click's own range lets NaN and infinity pass."""

    def __init__(self) -> None:
        super().__init__(min=0.0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


#: A prior precision: any positive number.
PRECISION = PositiveNumber()


class EstimatorList(click.ParamType):
    """Comma-separated names of estimators, and with ``none_too`` the name for training without one."""

    name = "names"

    def __init__(self, none_too: bool = False) -> None:
        self._whole = (NO_ESTIMATOR,) if none_too else ()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            names = [name.strip() for name in str(value).split(",")]
            return tuple(name if name in self._whole else str(parse_estimator(name)) for name in names)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        done, _, last = incomplete.rpartition(",")
        head = f"{done}," if done else ""
        return [CompletionItem(head + name) for name in _completions() if name.startswith(last)]


class SeedList(click.ParamType):
    """Comma-separated seeds, each once."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        seeds = tuple(int(part) for part in parts if part.isdecimal())
        if len(set(seeds)) < len(parts):
            self.fail(f"{value!r} is not a list of different seeds, such as 0,1,2", param, ctx)
        return seeds


class NumberList(click.ParamType):
    """Comma-separated numbers of at least 1, each once."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        numbers = tuple(int(part) for part in parts if part.isdecimal() and int(part))
        if len(set(numbers)) < len(parts):
            self.fail(f"{value!r} is not a list of different numbers, such as 250,500,1000", param, ctx)
        return numbers


class NameList(click.ParamType):
    """Comma-separated names, each once."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        if len(set(names)) < len(names) or not all(names):
            self.fail(f"{value!r} is not a list of different names, such as mnist,fashion-mnist", param, ctx)
        return names


class TrainEstimator(click.ParamType):
    """The name of one estimator, or ``none``."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return NO_ESTIMATOR if value == NO_ESTIMATOR else str(parse_estimator(str(value)))
        except ValueError as error:
            self.fail(f"{error}; none trains without one", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in (NO_ESTIMATOR, *_completions()) if name.startswith(incomplete)]


class TrainProtocolName(click.ParamType):
    """A protocol of ``ntkml train``; whether it exists is found out where its file is read."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ntkml.train_protocols import train_names

        return [CompletionItem(name) for name in train_names() if name.startswith(incomplete)]


class ChunkSize(click.ParamType):
    """A number of inputs, or ``auto``."""

    name = "auto|int"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or isinstance(value, int) or value == "auto":
            return None if value == "auto" else value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is not auto or a positive number of inputs", param, ctx)
        return int(value)


def _completions() -> list[str]:
    """Common spellings: every structure, a few sizes, every split and grouping."""
    plain = [
        f"{structure}-{inputs}-{outputs}"
        for structure in STRUCTURES
        for inputs in ("100", "500", "N")
        for outputs in ("1", "C", "tree")
    ]
    return plain + [f"ntk-100-{outputs}+{grouping}" for outputs in ("1", "C", "tree") for grouping in GROUPINGS]
