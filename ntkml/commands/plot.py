"""``ntkml plot``: a figure from the rows of finished runs; torch is never imported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ntkml.registry import FIGURES, resolve, unknown_name

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_EPILOG = """\b
Examples:
  ntkml plot figure-2
  ntkml plot figure-4
  ntkml plot figure-3 --csv prior/rows.csv --csv rotation/rows.csv --format pdf
  ntkml plot figure-8 --csv results/pareto/<run>/training.csv.gz
  ntkml plot pareto

\b
What has to be run before:
  figures 3-6, 12     ntkml bound-grid --hparam prior --protocol mnist-bounds   (and rotation)
  figures 1, 8, 9     ntkml pareto --hparam invariance
  figures 13, 10, 11  ntkml pareto --hparam prior
  comparison          ntkml compare --hparam prior   (and rotation)
"""
WITHOUT_ROWS = ("figure-2",)


class FigureName(click.ParamType):
    """A name from the registry of figures."""

    name = "figure"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in FIGURES:
            self.fail(unknown_name("figure", value, list(FIGURES)), param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in FIGURES if name.startswith(incomplete)]


@click.command(epilog=_EPILOG, context_settings={"show_default": True})
@click.argument("name", type=FigureName())
@click.option(
    "--csv",
    "csv",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Rows to draw; may be repeated.  [default: the newest runs]",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    help="Where runs are looked for without --csv.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), help="Folder for the pictures.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(("png", "pdf")),
    default=("png", "pdf"),
    help="May be repeated.",
)
def plot(name: str, csv: tuple[Path, ...], results: Path, out: Path, formats: tuple[str, ...]) -> None:
    """Draw NAME: figure-1 to figure-6, figure-8 to figure-13, or bound-grid, pareto or comparison for any one run.

    Without --csv the newest finished runs under --results that hold the figure's estimators are drawn. Figures 8 to 11 show
    the runs of ntkml train, alone or in a Pareto run: the newest and those that differ from it in estimator and seed alone.
    An older picture of the same name is replaced; rows never are.
    """
    if name in WITHOUT_ROWS and csv:
        raise click.UsageError(f"{name} is a schematic and reads no rows; leave out --csv")
    from ntkml import records
    from ntkml.figures import render

    figure, stem = (
        (resolve(FIGURES, name, "figure")(), name) if name in WITHOUT_ROWS else _from_rows(name, csv, results)
    )
    for path in render.save(figure, records.ensure_writable_folder(out) / stem, formats):
        click.echo(f"Wrote {path}")


def _from_rows(name: str, csv: tuple[Path, ...], results: Path) -> tuple[Any, str]:
    """The figure and the stem of its file name."""
    from ntkml import figure_protocols

    if name in figure_protocols.trajectory_names():
        return _trajectories(name, csv, results)
    if name == "comparison":
        return _comparison(name, csv, results)
    if name in figure_protocols.pareto_names():
        return _pareto(name, csv, results)
    return _bounds(name, csv, results)


def _bounds(name: str, csv: tuple[Path, ...], results: Path) -> tuple[Any, str]:
    """A figure of bound grids."""
    from ntkml import records
    from ntkml.figures import captions, sources
    from ntkml.protocols import HPARAMS, figure_names

    paths = list(csv) or [run.rows for run in sources.runs_for(name, results)]
    rows = records.read_rows(*paths)
    _say_read(paths)
    manifests, notes = sources.manifests_beside(paths)
    notes = captions.manifest_notes(manifests) + notes
    draw = resolve(FIGURES, name, "figure")
    if name not in figure_names():
        return draw(rows, notes), _run_stem(name, rows)
    for hparam in HPARAMS:
        if hparam not in set(rows["hparam"]):
            click.echo(f"No {hparam} rows: that panel stays empty")
    return draw(name, rows, notes), name


def _trajectories(name: str, csv: tuple[Path, ...], results: Path) -> tuple[Any, str]:
    """A figure of training runs."""
    import pandas

    from ntkml.figure_protocols import load_trajectory_figure
    from ntkml.figures import training_sources

    figure = load_trajectory_figure(name)
    paths = list(csv) or training_sources.training_files(figure, results)
    runs, notes = training_sources.choose(figure, training_sources.training_runs(paths))
    _say_read(dict.fromkeys(run.path for run in runs))
    rows = pandas.concat([run.rows for run in runs], ignore_index=True)
    return resolve(FIGURES, name, "figure")(name, rows, notes), name


def _pareto(name: str, csv: tuple[Path, ...], results: Path) -> tuple[Any, str]:
    """A figure of one Pareto run."""
    from ntkml import pareto_records
    from ntkml.figure_protocols import ANY_PARETO
    from ntkml.figures import sources

    paths = list(csv) or [sources.pareto_run_for(name, results).rows]
    rows = pareto_records.read_rows(*paths)
    _say_read(paths)
    manifests, notes = sources.manifests_beside(paths)
    manifest = manifests[0] if manifests else {}
    figure = resolve(FIGURES, name, "figure")(name, rows, [*manifest.get("notes", []), *notes], manifest)
    return figure, _run_stem(name, rows) if name == ANY_PARETO else name


def _comparison(name: str, csv: tuple[Path, ...], results: Path) -> tuple[Any, str]:
    """Quality against cost, of the named files or of the newest comparison of each hyperparameter."""
    from ntkml import compare_records
    from ntkml.figures import captions, sources

    paths = list(csv) or [run.rows for run in sources.comparisons(results)]
    rows = compare_records.read_rows(*paths)
    _say_read(paths)
    manifests, notes = sources.manifests_beside(paths)
    return resolve(FIGURES, name, "figure")(rows, captions.manifest_notes(manifests) + notes), name


def _say_read(paths: Iterable[Path]) -> None:
    for path in paths:
        click.echo(f"Read {path}")


def _run_stem(name: str, rows: Any) -> str:
    """A name that tells runs apart: hyperparameter, data set and, where there is one run only, its id."""
    parts = [name]
    for column in ("hparam", "dataset", "run_id"):
        values = rows[column].unique()
        parts += [str(values[0])] if len(values) == 1 else []
    return re.sub(r"[^\w.+-]", "_", "-".join(parts))  # cells of a file must not choose a folder
