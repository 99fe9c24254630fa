"""Types of command-line options: names of estimators, with completion, and positive numbers."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from ntkml.registry import STRUCTURES
from ntkml.specs import GROUPINGS, parse_estimator

#: A prior precision: any positive number.
PRECISION = click.FloatRange(min=0.0, min_open=True)


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
        done, _, last = incomplete.rpartition(",")
        head = f"{done}," if done else ""
        return [CompletionItem(head + name) for name in _completions() if name.startswith(last)]


def _completions() -> list[str]:
    """Common spellings: every structure, a few sizes, every split and grouping."""
    plain = [
        f"{structure}-{inputs}-{outputs}"
        for structure in STRUCTURES
        for inputs in ("100", "500", "N")
        for outputs in ("1", "C", "tree")
    ]
    return plain + [f"ntk-100-{outputs}+{grouping}" for outputs in ("1", "C", "tree") for grouping in GROUPINGS]
