"""``ntkml plot``: a figure from the rows of finished runs; torch is never imported."""

from __future__ import annotations

from pathlib import Path

import click

from ntkml.commands.types import CompletedName, NamedPath
from ntkml.registry import FIGURES, unknown_name

#: Files of rows that are named; of more the last line tells how many there are.
FILES_SHOWN = 8

_EPILOG = """\b
Examples:
  ntkml plot figure-2
  ntkml plot figure-4
  ntkml plot figure-3 --csv prior/rows.csv --csv rotation/rows.csv --format pdf
  ntkml plot figure-8 --csv results/pareto/<run>/training.csv.gz
  ntkml plot pareto

\b
What to run first:
  figures 3-6, 12     ntkml bound-grid --hparam prior --protocol mnist-bounds   (and rotation)
  figures 1, 8, 9     ntkml pareto --hparam invariance --protocol figure-1-reduced
  figures 13, 10, 11  ntkml pareto --hparam prior --protocol figure-13
  figures 7, 14-16    ntkml train --protocol figure-7-reduced, for several --num-data
  comparison          ntkml compare --hparam prior   (and rotation)
"""


def _known_figure(name: str) -> str:
    if name not in FIGURES:
        raise ValueError(unknown_name("figure", name, list(FIGURES)))
    return name


@click.command(epilog=_EPILOG, context_settings={"show_default": True})
@click.argument("name", type=CompletedName("figure", lambda: FIGURES, _known_figure))
@click.option(
    "--csv",
    "csv",
    multiple=True,
    type=NamedPath(),
    help="CSV file of rows to draw; may be repeated.  [default: the newest runs]",
)
@click.option(
    "--results",
    type=NamedPath(),
    default=Path("results"),
    help="Folder of runs, used without --csv.",
)
@click.option("--out", type=NamedPath(), default=Path("figures"), help="Folder for the pictures.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(("png", "pdf")),
    default=("png", "pdf"),
    help="May be repeated.",
)
def plot(name: str, csv: tuple[Path, ...], results: Path, out: Path, formats: tuple[str, ...]) -> None:
    """Draw NAME: figure-1 to figure-16, or bound-grid, pareto or comparison for any one run.

    Without --csv, draws the newest finished runs under --results that hold the figure's estimators. Figures 8 to 11 show
    runs of ntkml train, alone or in a Pareto run: the newest, and those that differ from it only in estimator and seed.
    An older picture of the same name is replaced; rows never are.
    """
    from ntkml.figures import drawing, render

    if name in drawing.WITHOUT_ROWS and csv:
        raise click.UsageError(f"{name} is a schematic and reads no rows; leave out --csv")
    drawn = drawing.draw(name, csv, results)
    shown = drawn.files if len(drawn.files) <= FILES_SHOWN else drawn.files[: FILES_SHOWN - 1]
    for line in [*(f"Read {path}" for path in shown), *drawn.remarks]:
        click.echo(line)
    if more := len(drawn.files) - len(shown):
        click.echo(f"Read {more} more files of rows")
    for path in render.save(drawn.figure, out / drawn.stem, formats):
        click.echo(f"Wrote {path}")
