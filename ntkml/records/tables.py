"""Tidy rows as CSV files: written, read and joined by the schema of the command that made them.

CSV rows, and the manifests beside them, are all that passes from the code that computes to the figures, so a schema is a contract: a
file that breaks it is refused with the name of the file and of what is wrong. Files appear whole or not at all. A row file may end in
``.csv.gz``; it is then compressed, byte for byte the same on every run.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ntkml.machine import files
from ntkml.records.checks import Check, refuse_unusable
from ntkml.records.notes import first_few

if TYPE_CHECKING:
    import pandas

#: Column -> (kind, may it be empty). The order is the order in the file.
Columns = Mapping[str, tuple[str, bool]]


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Columns) -> Path:
    """Write the rows of a run as one CSV file, atomically; ``None`` is an empty cell.

    Raises:
        ValueError: a row lacks a column, has an unknown one, or holds what its column cannot (NaN included).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for number, row in enumerate(rows):
        missing = [name for name in columns if name not in row]
        unknown = [name for name in row if name not in columns]
        if missing or unknown:
            parts = [f"lacks {', '.join(missing)}"] if missing else []
            parts += [f"has unknown columns {', '.join(unknown)}"] if unknown else []
            raise ValueError(f"row {number} of {path} {' and '.join(parts)}")
        try:
            writer.writerow([_format(name, row[name], *columns[name]) for name in columns])
        except ValueError as error:
            raise ValueError(f"row {number} of {path}: {error}") from None
    data = text.getvalue().encode()
    # A fixed time in the gzip header, so that equal rows make equal files.
    return files.write_atomically(path, gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def read_joined(
    paths: Iterable[str | Path],
    command: str,
    columns: Columns,
    key: list[str],
    described: Callable[[Any], str],
    checks: Sequence[Check] = (),
) -> pandas.DataFrame:
    """Row files of one schema that pass ``checks``, joined; ``described`` names a row in the error about a duplicate.

    Raises:
        ValueError: no file, one that :func:`read_table` refuses, or a row that is there twice.
    """
    import pandas

    named = [Path(path) for path in paths]
    if not named:
        raise ValueError("no CSV file was given; pass at least one")
    rows = pandas.concat([read_table(path, command, columns, checks) for path in named], ignore_index=True)
    twice = rows[rows.duplicated(key, keep="first")]
    if len(twice):
        raise ValueError(f"{first_few(named)}: {described(twice.iloc[0])} is there more than once; give each file once")
    return rows


def read_table(path: Path, command: str, columns: Columns, checks: Sequence[Check] = ()) -> pandas.DataFrame:
    """One file of rows in the schema ``columns`` of which ``checks`` hold.

    Text columns are strings (an empty cell is ``""``), flags nullable booleans, whole numbers nullable where they may be empty.
    A file that many figures of one report are drawn from is parsed once while it stays as it is; the frame is the caller's own.

    Raises:
        ValueError: a file that is missing, empty, not such a CSV or of another command, or a cell that is not as it should be;
            names the file, the column, the line and what was expected.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a CSV file")
    state = path.stat()
    if state.st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    version = (state.st_ino, state.st_mtime_ns, state.st_size)
    return _parsed(path, version, command, tuple(columns.items()), tuple(checks)).copy()


@lru_cache(maxsize=256)
def _parsed(
    path: Path,
    version: tuple[int, ...],  # of the file: another one is read again
    command: str,
    columns: tuple[tuple[str, tuple[str, bool]], ...],
    checks: tuple[Check, ...],
) -> pandas.DataFrame:
    import pandas

    try:
        text = _text(path)
        # Everything as text first: a run id such as 12e4567890 must not become a number.
        rows = pandas.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (ValueError, EOFError, OSError, zlib.error) as error:  # pandas' ParserError is a ValueError
        raise ValueError(f"{path}: not a CSV file ({str(error).splitlines()[0]})") from None
    # pandas fills a short line up with empty cells.
    last = text.rstrip().rpartition("\n")[2]
    if len(rows) and re.sub('"[^"]*"', "", last).count(",") + 1 < len(rows.columns):
        raise ValueError(
            f"{path}: the last line, {len(rows) + 1}, has fewer cells than the header; was the file cut short?"
        )
    if "command" in rows and len(others := sorted(set(rows["command"]) - {command})):
        raise ValueError(
            f"{path}: holds rows of {first_few([repr(name) for name in others])}, expected rows of {command!r}"
        )
    missing = [name for name, _ in columns if name not in rows]
    if missing:
        raise ValueError(f"{path}: not a file of {command!r}, missing columns: {', '.join(missing)}")
    if rows.empty:
        raise ValueError(f"{path}: has a header but no rows")
    parsed = pandas.DataFrame({name: _parse(rows[name], *column, path) for name, column in columns})
    refuse_unusable(path, parsed, checks)
    return parsed


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")  # spreadsheets write the mark


def as_rows(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    """Rows for :func:`write_rows`; a missing value is None."""
    values = frame.astype(object)
    return cast("list[dict[str, Any]]", values.where(values.notna(), None).to_dict("records"))


def _format(name: str, value: Any, kind: str, may_be_empty: bool) -> str:
    """One cell as text; the inverse of :func:`_parse`."""
    if value is None or value == "":
        if not may_be_empty:
            raise ValueError(f"{name} must not be empty")
        return ""
    if kind == "number":
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
        return as_cell(value)
    if kind == "integer":
        if int(value) != value:
            raise ValueError(f"{name} must be a whole number, got {value}")
        return str(int(value))
    if kind == "flag":
        return "true" if value else "false"
    return str(value)


def as_cell(number: float) -> str:
    """A number with ten digits: more are rounding, and as binary fractions give decimals they would not end."""
    return f"{float(number):.10g}"


def _parse(cells: pandas.Series[Any], kind: str, may_be_empty: bool, path: Path) -> pandas.Series[Any]:
    """One column of text as its proper type."""
    import pandas

    name, empty = cells.name, cells == ""
    values: Any
    if not may_be_empty and empty.any():
        raise ValueError(f"{path}: column {name} is empty in line {int(empty.argmax()) + 2}")
    if kind == "text":
        return cells
    if kind == "flag":
        values = cells.str.lower().map({"true": True, "false": False}).astype("boolean")
        expected = "true or false"
    else:
        values = pandas.to_numeric(cells.where(~empty), errors="coerce")
        values = values.where(values.abs() != math.inf)
        expected = "a finite number"
        if kind == "integer":
            expected = "a whole number below 2^63"
            values = values.where((values % 1 == 0) & (values.abs() < 2**63)).astype("Int64")
            values = values if may_be_empty or values.isna().any() else values.astype("int64")
    wrong = values.isna() & ~empty
    if wrong.any():
        line = int(wrong.argmax())
        raise ValueError(f"{path}: column {name}, line {line + 2}: expected {expected}, got {cells.iloc[line]!r}")
    return values
