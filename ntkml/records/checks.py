"""What a column of rows must hold beyond its type, so that every reader may count on it: names, and numbers above zero.

Figures put some numbers on logarithmic axes and take names apart; a cell that they could not use is refused where its file
is read, with the file, the column and the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkml.specs import parse_estimator
from ntkml.system_specs import canonical_name

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Check:
    """``holds(rows)`` is true at every row whose ``column`` is as ``expected`` says; cells that may be empty pass."""

    column: str
    expected: str
    holds: Callable[[pandas.DataFrame], pandas.Series[bool]]


def refuse_unusable(path: Path, rows: pandas.DataFrame, checks: Iterable[Check]) -> None:
    """Raise ValueError, naming the file, the column, its line and the value, where a check does not hold."""
    for check in checks:
        wrong = ~check.holds(rows) & rows[check.column].notna()
        if wrong.any():
            line = int(wrong.argmax())
            value = rows[check.column].iloc[line]
            raise ValueError(
                f"{path}: column {check.column}, line {line + 2}: expected {check.expected}, got {_shown(value)}"
            )


def above_zero(*columns: str) -> list[Check]:
    """Positive numbers in columns that are never empty."""
    return [_above_zero(name) for name in columns]


def one_of(column: str, names: Collection[str]) -> Check:
    """Some of ``names`` alone."""
    return Check(column, " or ".join(names), lambda rows: rows[column].isin(list(names)))


def fully_matching(column: str, pattern: str, expected: str) -> Check:
    """Texts that a regular expression describes."""
    return Check(column, expected, lambda rows: rows[column].str.fullmatch(re.compile(pattern)))


ESTIMATOR = Check(
    "estimator",
    "the name of an estimator such as ntk-100-tree",
    lambda rows: _each(rows["estimator"], partial(_reads, parse_estimator)),
)
SYSTEM = Check(
    "system",
    "the name of an estimator or another system, such as ntk-100-tree or hoag",
    lambda rows: _each(rows["system"], partial(_reads, canonical_name)),
)
#: Inputs of a block, where a row has some.
INPUTS = fully_matching("inputs", "N|[1-9][0-9]{0,17}|", "N or a number of inputs")


def _above_zero(column: str) -> Check:
    return Check(column, "a number above 0", lambda rows: rows[column] > 0)


def _each(cells: pandas.Series[Any], holds: Callable[[str], bool]) -> pandas.Series[bool]:
    """``holds`` at every cell, asked once for cells that are alike."""
    return cells.map({value: holds(value) for value in cells.unique()}).astype(bool)


def _reads(read: Callable[[str], Any], name: str) -> bool:
    try:
        read(name)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"{value:.10g}"
