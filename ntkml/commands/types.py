"""Types of command-line options: names of estimators, with completion, and positive numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from ntkml.registry import STRUCTURES
from ntkml.specs import GROUPINGS, parse_estimator
from ntkml.system_specs import ALIASES, FAMILIES, canonical_name


class PositiveNumber(click.FloatRange):
    """A positive, finite number; click's own range lets NaN and infinity pass."""

    def __init__(self) -> None:
        super().__init__(min=0.0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


_SYSTEMS = ", ".join(f"{name}-K" if family.counts else name for name, family in FAMILIES.items())

#: A prior precision: any positive number.
PRECISION = PositiveNumber()


class EstimatorList(click.ParamType):
    """Comma-separated names of estimators."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(str(parse_estimator(name.strip())) for name in str(value).split(","))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _last_completed(incomplete, _completions())


class SystemList(click.ParamType):
    """Comma-separated names of estimators and other systems, ``none`` among them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(canonical_name(name.strip()) for name in str(value).split(","))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _last_completed(incomplete, [*FAMILIES, *ALIASES, *_completions()])


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
    """The name of one estimator, of another system, or ``none``."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return canonical_name(str(value))
        except ValueError as error:
            self.fail(f"{error}; none trains without one, and other systems are called {_SYSTEMS}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in (*FAMILIES, *ALIASES, *_completions()) if name.startswith(incomplete)]


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


def _last_completed(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    """Completions of the last name of a list with commas."""
    done, comma, last = incomplete.rpartition(",")
    return [CompletionItem(done + comma + name) for name in names if name.startswith(last)]
