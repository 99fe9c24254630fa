"""Types of command-line options: names of estimators, with completion, and numbers within the ranges of a run's settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ntkml.protocols.ranges import LARGEST, LAST_SEED, MOST, MOST_SAMPLES, SMALLEST
from ntkml.protocols.train import TRAIN_HPARAMS
from ntkml.registry import STRUCTURES
from ntkml.specs import GROUPINGS, parse_estimator
from ntkml.system_specs import ALIASES, FAMILIES, INVARIANCE, canonical_name


class PositiveNumber(click.FloatRange):
    """A positive number that float32 has room for; click's own range lets NaN pass."""

    def __init__(self) -> None:
        super().__init__(SMALLEST, LARGEST)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Seconds(click.FloatRange):
    """A time of zero or more; infinity is never."""

    def __init__(self) -> None:
        super().__init__(min=0.0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return number


class NamedPath(click.Path):
    """A path that is not empty: that of an unset variable would be the working folder."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty path: name a file or folder, '.' for this one", param, ctx)
        return super().convert(value, param, ctx)


_SYSTEMS = ", ".join(f"{name}-K" if family.counts else name for name, family in FAMILIES.items())

#: A learning rate or a prior precision.
POSITIVE = PositiveNumber()
#: What is counted from 1, augmentation samples, and seeds.
COUNT = click.IntRange(1, MOST)
SAMPLES = click.IntRange(1, MOST_SAMPLES)
SEED = click.IntRange(0, LAST_SEED)


class LearnedHparam(click.Choice):
    """What training learns; ``rotation`` is another word for ``invariance``."""

    def __init__(self) -> None:
        super().__init__((*TRAIN_HPARAMS, "rotation"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        chosen = str(super().convert(value, param, ctx))
        return INVARIANCE if chosen == "rotation" else chosen


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
        seeds = tuple(number for part in parts if (number := _whole(part, 0, LAST_SEED)) is not None)
        if len(set(seeds)) < len(parts):
            self.fail(f"{value!r} is not a list of different seeds, such as 0,1,2 (up to {LAST_SEED})", param, ctx)
        return seeds


class NumberList(click.ParamType):
    """Comma-separated numbers of at least 1, each once."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        numbers = tuple(number for part in parts if (number := _whole(part, 1, MOST)) is not None)
        if len(set(numbers)) < len(parts):
            self.fail(f"{value!r} is not a list of different numbers, such as 250,500,1000 (up to {MOST})", param, ctx)
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
        from ntkml.protocols.train import train_names

        return [CompletionItem(name) for name in train_names() if name.startswith(incomplete)]


class ChunkSize(click.ParamType):
    """A number of inputs, or ``auto``."""

    name = "auto|int"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or isinstance(value, int) or value == "auto":
            return None if value == "auto" else value
        if (size := _whole(str(value), 1, MOST)) is None:
            self.fail(f"{value!r} is not auto or a positive number of inputs (up to {MOST})", param, ctx)
        return size


def _whole(text: str, low: int, high: int) -> int | None:
    """The whole number that ``text`` spells, None where it is none or lies outside; more digits than any has are not read."""
    number = int(text) if text.isdecimal() and len(text) <= len(str(LAST_SEED)) else None
    return number if number is not None and low <= number <= high else None


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
