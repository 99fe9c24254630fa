"""What a column of rows must hold beyond its type, so that every reader may count on it: names, and ranges of numbers.

Figures put some numbers on logarithmic axes and take names apart; a cell that they could not use is refused where its file
is read, with the file, the column and the line.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkml.system_specs import canonical_name, is_bound, parts_of

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Check:
    """``holds(rows)`` is true at every row whose ``column`` is as ``expected`` says."""

    column: str
    expected: str
    holds: Callable[[pandas.DataFrame], pandas.Series[bool]]


def refuse_unusable(path: Path, rows: pandas.DataFrame, checks: Iterable[Check]) -> None:
    """Raise ValueError, naming the file, the column, its line and the value, where a check does not hold."""
    for check in checks:
        wrong = ~check.holds(rows)
        if wrong.any():
            line = int(wrong.argmax())
            value = rows[check.column].iloc[line]
            raise ValueError(
                f"{path}: column {check.column}, line {line + 2}: expected {check.expected}, got {_shown(value)}"
            )


def above_zero(*columns: str) -> list[Check]:
    """Positive numbers; cells that may be empty pass, here and in the next two."""
    return [_within(name, "a number above 0", 0.0, math.inf, "neither") for name in columns]


def not_below_zero(*columns: str) -> list[Check]:
    """Positive numbers and zero."""
    return [_within(name, "a number of 0 or more", 0.0, math.inf, "left") for name in columns]


def shares(*columns: str) -> list[Check]:
    """Numbers from 0 to 1."""
    return [_within(name, "a number from 0 to 1", 0.0, 1.0, "both") for name in columns]


def one_of(column: str, names: Collection[str]) -> Check:
    """Some of ``names`` alone."""
    return Check(column, " or ".join(names), lambda rows: rows[column].isin(list(names)))


def fully_matching(column: str, pattern: str, expected: str) -> Check:
    """Texts that a regular expression describes."""
    return Check(column, expected, lambda rows: rows[column].str.fullmatch(re.compile(pattern)))


def positive_list(column: str) -> Check:
    """JSON lists of positive numbers; an empty cell passes."""
    return Check(column, "numbers above 0 as [1, 2.5]", lambda rows: _each(rows[column], _is_positive_list))


def empty_where(column: str, other: str) -> Check:
    """Cells that are empty where those of ``other`` are, and nowhere else."""
    expected = f"a number where {other} has one, else nothing"
    return Check(column, expected, lambda rows: rows[column].isna() == rows[other].isna())


def one_for_every(key: str, column: str) -> Check:
    """The same in all rows of one ``key``."""
    same = f"the same in every row of one {key}"
    return Check(column, same, lambda rows: rows[column] == rows.groupby(key)[column].transform("first"))


def system(column: str) -> Check:
    """Names of estimators and of other systems, in their one spelling."""
    expected = "the name of an estimator or another system, such as ntk-100-tree or hoag"
    return Check(column, expected, lambda rows: _each(rows[column], _is_system))


def as_named(part: str) -> Check:
    """What the name in the column ``estimator`` says of its structure, inputs, outputs or grouping."""
    expected = f"the {part} that the estimator's name says"
    return Check(
        part, expected, lambda rows: rows[part] == _looked_up(rows["estimator"], lambda name: parts_of(name)[part])
    )


ESTIMATOR = Check(
    "estimator",
    "the name of an estimator such as ntk-100-tree",
    lambda rows: _each(rows["estimator"], lambda name: is_bound(name) and _is_system(name)),
)
#: Columns that say in parts what the estimator's name says.
PARTS = [as_named(part) for part in ("structure", "inputs", "outputs", "grouping")]


def _within(column: str, expected: str, low: float, high: float, inclusive: Any) -> Check:
    return Check(column, expected, lambda rows: rows[column].isna() | rows[column].between(low, high, inclusive))


def _each(cells: pandas.Series[Any], holds: Callable[[str], bool]) -> pandas.Series[bool]:
    return _looked_up(cells, holds).astype(bool)


def _looked_up(cells: pandas.Series[Any], value_of: Callable[[str], Any]) -> pandas.Series[Any]:
    """``value_of`` every cell, asked once for cells that are alike."""
    return cells.map({cell: value_of(cell) for cell in cells.unique()})


def _is_system(name: str) -> bool:
    try:
        return canonical_name(name) == name
    except ValueError:
        return False


def _is_positive_list(cell: str) -> bool:
    try:
        values = json.loads(cell or "[1]")
    except (ValueError, RecursionError):
        return False
    return isinstance(values, list) and bool(values) and all(_is_positive(value) for value in values)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def _shown(value: Any) -> str:
    import pandas

    if isinstance(value, str):
        return repr(value) if value else "an empty cell"
    if pandas.isna(value):
        return "an empty cell"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
