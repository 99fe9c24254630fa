"""A table as Markdown, LaTeX or CSV; all three from the same cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ntkml.protocols.run_settings import RunSettings
from ntkml.records.tables import as_cell
from ntkml.specs import is_certified, parse_estimator
from ntkml.system_specs import is_bound
from ntkml.tables.entries import METRICS, Entry, Value, bold
from ntkml.tables.panels import TITLES, Panel

#: What a panel holds of one source, by (hparam, estimator).
Entries = Mapping[tuple[str, str], Entry]


@dataclass(frozen=True)
class Column:
    """``unit``: behind every number."""

    heading: str
    decimals: int
    unit: str = ""


_TEST = {"test_log_likelihood": Column("test log lik.", 2), "accuracy": Column("accuracy %", 1)}
_TIME = "relative_time"
#: Columns of each table, by the names of an entry's values.
COLUMNS = {"table-1": {"log_q": Column("log q/N", 2), **_TEST, _TIME: Column("time", 0, "%")}, "table-2": _TEST}
HEADINGS = {"prior": "prior precision", "invariance": "invariance"}

#: What means something to LaTeX, in names that anybody may give to data.
_LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%_#${}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
)

_READING = (
    "Means over seeds +- one standard error (sample standard deviation over the square root of the number of seeds); no error with one seed.",
    "Bold: the interval of one standard error overlaps that of the best of its category (one source, one hyperparameter), as we read the "
    "paper's rule; for published numbers applied to the printed digits, of which the paper had more; nothing is bold without errors.",
    "Ours: test values are those of the last epoch.",
    "* not a proven lower bound. Blank: not run, or not published.",
)
#: What a table says of columns that not every table has.
_READING_OF = {
    "table-1": (
        "Ours: log q/N is a run's own last estimate: the mean over the steps of its last update, each from its estimator's blocks. "
        "Time: seconds of weights and hyperparameters without evaluations, relative to kfac-N-C.",
    ),
}


def markdown(panels: Sequence[Panel]) -> str:
    """All panels, one below the other."""
    parts = []
    for panel in panels:
        columns = _columns(panel)
        lines = [f"### {panel.title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(panel, _markdown_value, lambda name: f"`{name}`")]
        lines += ["", *(f"- {note}" for note in notes_of(panel))]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"- {sentence}" for sentence in _reading(panels))]) + "\n"


def _reading(panels: Sequence[Panel]) -> list[str]:
    """How all panels are to be read."""
    tables = dict.fromkeys(panel.table for panel in panels)
    return [*_READING, *(sentence for table in tables for sentence in _READING_OF.get(table, ()))]


def plain(panel: Panel) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as text, without marks for bold."""
    return _columns(panel), _cells(panel, lambda value, column, _: _markdown_value(value, column, False), str)


def _columns(panel: Panel) -> list[str]:
    heads = [column.heading for column in COLUMNS[panel.table].values()]
    return ["", "estimator", *(f"published {h}" for h in heads), *(f"ours {h}" for h in heads), "seeds"]


def latex(panels: Sequence[Panel]) -> str:
    """One ``tabular`` for each panel, its notes in a paragraph below it; what includes the file keeps its own size of type."""
    parts = [r"% For \input, with \usepackage{booktabs} in the preamble."]
    for panel in panels:
        heads = [column.heading for column in COLUMNS[panel.table].values()]
        count = len(heads)
        lines = [
            f"% {panel.title}",
            rf"\begin{{tabular}}{{ll{'c' * (2 * count)}r}}",
            r"\toprule",
            rf" & & \multicolumn{{{count}}}{{c}}{{published}} & \multicolumn{{{count}}}{{c}}{{ours}} & \\",
            _row(["", "estimator", *map(_escaped, heads), *map(_escaped, heads), "seeds"]),
            r"\midrule",
            *(_row(cells) for cells in _cells(panel, _latex_value, lambda name: rf"\texttt{{{_escaped(name)}}}")),
            r"\bottomrule",
            r"\end{tabular}",
            "",
            _small([f"{panel.title}.", *notes_of(panel)]),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, _small(_reading(panels))]) + "\n"


def _small(sentences: Sequence[str]) -> str:
    """A paragraph in small type, which ends with it: what follows is not small."""
    return rf"{{\footnotesize {' '.join(map(_escaped, sentences))}\par}}"


def tidy(panels: Sequence[Panel]) -> str:
    """CSV: a line for every entry, published and ours, with as many digits as the rows have."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    of_metrics = [part for name in METRICS.values() for part in (name, f"{name}_error", f"{name}_bold")]
    about = [
        "table",
        "dataset",
        "protocol",
        "variant",
        "changes",
        "hparam",
        "estimator",
        "label",
        "source",
        "certified",
    ]
    writer.writerow([*about, "seeds", *of_metrics, "seconds", "relative_time", "note"])
    for panel in panels:
        if panel.whole:
            writer.writerows(_tidy_lines(panel, panel.theirs, None))
        writer.writerows(_tidy_lines(panel, panel.ours, panel.settings))
    return text.getvalue()


def _tidy_lines(panel: Panel, held: Entries, settings: RunSettings | None) -> Iterator[list[str]]:
    """The lines of the published entries of a panel, or of ours, which have ``settings``."""
    named = ["", "", ""]
    if settings is not None:
        changes = "; ".join(f"{key}={value}" for key, value in settings.changes)
        named = [settings.protocol, settings.variant, changes]
    for row in panel.rows:
        if (entry := held.get(row)) is not None:
            certified = "" if entry.certified is None else str(entry.certified).lower()
            about = [panel.table, panel.dataset, *named, *row, entry.label, entry.source, certified]
            seeds = " ".join(map(str, entry.seeds))
            values = [cell for name in METRICS.values() for cell in _tidy_value(entry, name, held)]
            yield [*about, seeds, *values, _digits(entry.seconds), _digits(entry.relative_time), entry.note]


def _tidy_value(entry: Entry, name: str, held: Entries) -> list[str]:
    """Mean, error, and whether it is bold."""
    value = entry.values.get(name)
    if value is None:
        return ["", "", ""]
    return [_digits(value.mean), _digits(value.error), str(_is_bold(entry, name, held)).lower()]


def _digits(number: float | None) -> str:
    """A number as a CSV file of rows has it: 82.63, not 82.63000000000001."""
    return "" if number is None else as_cell(number)


def notes_of(panel: Panel) -> list[str]:
    """What the panel must say of itself."""
    notes = []
    if panel.beside is not None:
        data = TITLES.get(panel.beside, panel.beside)
        other = "" if panel.whole else ", whole protocol; ours beside it have other settings"
        notes.append(f"Published: the paper's numbers on {data}{other}.")
        literature = [entry for entry in panel.theirs.values() if entry.source == "literature"]
        for source in dict.fromkeys(entry.note for entry in literature):
            names = ", ".join(entry.label for entry in literature if entry.note == source)
            notes.append(f"{names}: constants of the literature, {source}, as the paper cites them.")
        notes += [
            f"Published {entry.label} ({HEADINGS[entry.hparam]}): {entry.note}."
            for entry in panel.theirs.values()
            if entry.note and entry.source == "paper"
        ]
    if not panel.ours:
        notes.append("Ours: no finished run yet.")
    return [*notes, *panel.notes]


def _cells(panel: Panel, show: Callable[[Value, Column, bool], str], name: Callable[[str], str]) -> list[list[str]]:
    """The text of every row: hyperparameter, estimator, published and our values, number of seeds."""
    lines, before = [], ""
    for row in panel.rows:
        hparam, estimator = row
        theirs, ours = panel.theirs.get(row), panel.ours.get(row)
        label = theirs.label if theirs else ""
        cell = label if theirs and theirs.source == "literature" else f"{name(estimator)} {label}".strip()
        doubt = "*" if _unproven(estimator, ours) else ""
        texts = []
        for entry, held in ((theirs, panel.theirs), (ours, panel.ours)):
            for metric, column in COLUMNS[panel.table].items():
                if entry is None or (value := _value(entry, metric)) is None:
                    texts.append("")
                else:
                    texts.append(show(value, column, _is_bold(entry, metric, held)))
        seeds = str(len(ours.seeds)) if ours else ""
        lines.append([HEADINGS[hparam] if hparam != before else "", cell + doubt, *texts, seeds])
        before = hparam
    return lines


def _value(entry: Entry, name: str) -> Value | None:
    if name == _TIME:
        return None if entry.relative_time is None else Value(entry.relative_time)
    return entry.values.get(name)


def _unproven(estimator: str, ours: Entry | None) -> bool:
    """Whether an estimator is no proven bound: as our rows say, else by its name under a softmax of many classes."""
    if ours is not None and ours.certified is not None:
        return not ours.certified
    return is_bound(estimator) and not is_certified(parse_estimator(estimator))


def _is_bold(entry: Entry, name: str, held: Entries) -> bool:
    """Among the entries of its source that learn the same."""
    return bold(entry, name, [other for other in held.values() if other.hparam == entry.hparam])


def _markdown_value(value: Value, column: Column, is_bold: bool) -> str:
    text = _number(value, column, "±") + column.unit
    return f"**{text}**" if is_bold else text


def _latex_value(value: Value, column: Column, is_bold: bool) -> str:
    text = _number(value, column, r"\pm")
    return (rf"$\mathbf{{{text}}}$" if is_bold else f"${text}$") + _escaped(column.unit)


def _number(value: Value, column: Column, sign: str) -> str:
    error = "" if value.error is None else f" {sign} {value.error:.{column.decimals}f}"
    return f"{value.mean:.{column.decimals}f}{error}"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return text.translate(_LATEX).replace("+-", r"$\pm$")
