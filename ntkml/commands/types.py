"""Types of command-line options: names of estimators, with completion, and numbers within the ranges of a run's settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ntkml import registry
from ntkml.dataset_names import VARIANTS, join_name
from ntkml.protocols.ranges import LARGEST, LAST_SEED, MOST, MOST_SAMPLES, SMALLEST
from ntkml.protocols.train import train_names
from ntkml.specs import GROUPINGS, parse_estimator
from ntkml.system_specs import ALIASES, FAMILIES, INVARIANCE, TRAIN_HPARAMS, canonical_name


class NumberRange(click.FloatRange):
    """Numbers in a range, which NaN is not, unlike click's own. ``kind``: what they are called in the error."""

    def __init__(self, kind: str, low: float, high: float | None = None) -> None:
        super().__init__(low, high)
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a {self.kind}", param, ctx)
        return number


class NamedPath(click.Path):
    """A path that is not empty: that of an unset variable would be the working folder."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty path: name a file or folder, '.' for this one", param, ctx)
        return super().convert(value, param, ctx)


#: What is completed: common spellings of every structure, a few sizes, every split and grouping; systems; data sets.
_ESTIMATOR_NAMES = [
    f"{structure}-{inputs}-{outputs}"
    for structure in registry.STRUCTURES
    for inputs in ("100", "500", "N")
    for outputs in ("1", "C", "tree")
] + [f"ntk-100-{outputs}+{grouping}" for outputs in ("1", "C", "tree") for grouping in GROUPINGS]
_SYSTEM_NAMES = [*FAMILIES, *ALIASES, *_ESTIMATOR_NAMES]
_DATASET_NAMES = [join_name(base, variant) for base in registry.DATASETS for variant in VARIANTS]

#: A learning rate or a prior precision, which float32 has room for.
POSITIVE = NumberRange("finite number", SMALLEST, LARGEST)
#: A time; infinity is never.
SECONDS = NumberRange("number of seconds", 0.0)
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


class CommaList(click.ParamType):
    """Values with commas between them, each once.

    ``parse`` takes the text of one and returns None, or raises ValueError with words of its own, where it is no value.
    ``example``: what a list looks like. ``known``: values that are completed.
    """

    def __init__(self, name: str, parse: Callable[[str], Any], example: str, known: Sequence[str] = ()) -> None:
        self.name, self.parse, self.example, self.known = name, parse, example, known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            values = tuple(self.parse(part.strip()) for part in str(value).split(","))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if None in values or len(set(values)) < len(values):
            self.fail(f"{value!r} is not a list of different {self.name}, such as {self.example}", param, ctx)
        return values

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        done, comma, last = incomplete.rpartition(",")
        return [CompletionItem(done + comma + name) for name in self.known if name.startswith(last)]


class CompletedName(click.ParamType):
    """A name of which ``known`` ones are completed.

    ``parse`` gives its one spelling, or raises ValueError; without it, whether the name means something is found out where it
    is looked up.
    """

    def __init__(self, name: str, known: Callable[[], Iterable[str]], parse: Callable[[str], str] = str) -> None:
        self.name, self.known, self.parse = name, known, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return self.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.known() if name.startswith(incomplete)]


#: An estimator, another system or ``none``; a data set; a protocol of ``ntkml train``.
SYSTEM = CompletedName("name", lambda: _SYSTEM_NAMES, canonical_name)
DATASET = CompletedName("text", lambda: _DATASET_NAMES)
TRAIN_PROTOCOL = CompletedName("name", train_names)


class ChunkSize(click.ParamType):
    """A number of inputs, or ``auto``."""

    name = "auto|int"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        if (size := _whole(str(value), 1, MOST)) is None:
            self.fail(f"{value!r} is not auto or a positive number of inputs (up to {MOST})", param, ctx)
        return size


def _whole(text: str, low: int, high: int) -> int | None:
    """The whole number that ``text`` spells, None where it is none or lies outside; more digits than any has are not read."""
    number = int(text) if text.isdecimal() and len(text) <= len(str(LAST_SEED)) else None
    return number if number is not None and low <= number <= high else None


#: What the options of several commands list; one system under two names (lila, kfac-N-C) is there twice.
ESTIMATORS = CommaList("names", lambda name: str(parse_estimator(name)), "ntk-100-1,kfac-N-C", known=_ESTIMATOR_NAMES)
SYSTEMS = CommaList("names", canonical_name, "map,ntk-50-tree,grid-5", known=_SYSTEM_NAMES)
SEEDS = CommaList("seeds", lambda text: _whole(text, 0, LAST_SEED), f"0,1,2 (up to {LAST_SEED})")
NUMBERS = CommaList("numbers", lambda text: _whole(text, 1, MOST), f"250,500,1000 (up to {MOST})")
DATASETS = CommaList("names", lambda name: name or None, "mnist,fashion-mnist", known=_DATASET_NAMES)
