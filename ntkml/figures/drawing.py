"""Any figure by its name, from files that the user names or from the newest runs that fit it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ntkml.figures import captions, sources, subset_sources, training_sources
from ntkml.protocols import training_figures
from ntkml.protocols.bound_figures import figure_names
from ntkml.records import bound_grid as bound_records
from ntkml.records import compare as compare_records
from ntkml.records import pareto as pareto_records
from ntkml.records.bound_grid import HPARAMS
from ntkml.records.notes import merged
from ntkml.registry import FIGURES, resolve

WITHOUT_ROWS = ("figure-2",)
COMPARISON = "comparison"


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure, the stem of its file name, the row files that it shows, and remarks for whoever asked for it."""

    figure: Figure
    stem: str
    files: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()


def draw(name: str, csv: Sequence[Path], results: Path) -> Drawing:
    """The figure ``name`` of the registry, from the rows in ``csv`` or else of the newest runs below ``results``.

    Raises:
        ValueError: no rows for it, or files that do not fit; the message says what to run.
    """
    if name in WITHOUT_ROWS:
        return Drawing(resolve(FIGURES, name, "figure")(), name)
    if name in training_figures.trajectory_names():
        return _trajectories(name, csv, results)
    if name in training_figures.subset_names():
        return _subsets(name, csv, results)
    if name == COMPARISON:
        return _comparison(csv, results)
    if name in training_figures.pareto_names():
        return _pareto(name, csv, results)
    return _bounds(name, csv, results)


def _bounds(name: str, csv: Sequence[Path], results: Path) -> Drawing:
    """A figure of bound grids."""
    paths = list(csv) or [run.rows for run in sources.runs_for(name, results)]
    rows = bound_records.read_rows(*paths)
    manifests, notes = sources.manifests_beside(paths)
    notes = captions.manifest_notes(manifests) + notes + sources.unwritten(rows, manifests)
    function = resolve(FIGURES, name, "figure")
    if name not in figure_names():
        return Drawing(function(rows, notes), _run_stem(name, rows), tuple(paths))
    absent = [hparam for hparam in HPARAMS if hparam not in set(rows["hparam"])]
    remarks = [f"No {hparam} rows: that panel stays empty" for hparam in absent]
    return Drawing(function(name, rows, notes), name, tuple(paths), tuple(remarks))


def _trajectories(name: str, csv: Sequence[Path], results: Path) -> Drawing:
    """A figure of training runs."""
    import pandas

    figure = training_figures.load_trajectory_figure(name)
    paths = list(csv) or training_sources.training_files(figure, results)
    runs, notes = training_sources.choose(figure, training_sources.training_runs(paths))
    rows = pandas.concat([run.rows for run in runs], ignore_index=True)
    files = tuple(dict.fromkeys(run.path for run in runs))
    return Drawing(resolve(FIGURES, name, "figure")(name, rows, notes), name, files)


def _subsets(name: str, csv: Sequence[Path], results: Path) -> Drawing:
    """A figure of training runs on more and more data."""
    if csv:
        raise ValueError(f"{name} shows many runs with their manifests: name their folder with --results, not --csv")
    runs = subset_sources.subset_runs(training_figures.load_subset_figure(name), results)
    return Drawing(resolve(FIGURES, name, "figure")(name, runs), name, runs.paths)


def _pareto(name: str, csv: Sequence[Path], results: Path) -> Drawing:
    """A figure of one Pareto run."""
    paths = list(csv) or [sources.pareto_run_for(name, results).rows]
    rows = pareto_records.read_rows(*paths)
    manifests, notes = sources.manifests_beside(paths)
    manifest = manifests[0] if manifests else {}
    figure = resolve(FIGURES, name, "figure")(name, rows, [*manifest.get("notes", []), *notes], manifest)
    return Drawing(figure, _run_stem(name, rows) if name == training_figures.ANY_PARETO else name, tuple(paths))


def _comparison(csv: Sequence[Path], results: Path) -> Drawing:
    """Quality against cost, of the named files or of the newest comparison of each hyperparameter."""
    paths = list(csv) or [run.rows for run in sources.comparisons(results)]
    rows = compare_records.read_rows(*paths)
    manifests, notes = sources.manifests_beside(paths)
    said = merged(
        (
            f"{settings.get('hparam', 'a run')} on {settings.get('dataset', 'unknown data')}",
            captions.manifest_notes([one]),
        )
        for one in manifests
        for settings in [one.get("settings", {})]
    )
    function = resolve(FIGURES, COMPARISON, "figure")
    return Drawing(function(rows, said + notes), COMPARISON, tuple(paths))


def _run_stem(name: str, rows: Any) -> str:
    """A name that tells runs apart: hyperparameter, data set and, where there is one run only, its id.

    Of one run it is that of its folder, so that the picture of the command that computed it is replaced.
    """
    parts = [name]
    for column in ("hparam", "dataset", "run_id"):
        values = rows[column].unique()
        parts += [str(values[0])] if len(values) == 1 else []
    return re.sub(r"[/\\\x00-\x1f]", "_", "-".join(parts))  # cells of a file must not choose a folder
