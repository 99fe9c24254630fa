"""``ntkml table``: a table of the paper, ours beside the published numbers; torch is never imported."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from ntkml.commands.types import NamedPath
from ntkml.machine.messages import counted

_EPILOG = """\b
Examples:
  ntkml table 1
  ntkml table 2 --format latex
  ntkml table 1 --results results/reference --out tables

\b
What to run first, cell by cell or all at once:
  ntkml train --protocol table-1 --dataset cifar100 --estimator ntk-500-1 --device cuda
  ntkml train --protocol table-1-reduced --hparam invariance --estimator kfac-150-1
"""
#: Format -> suffix of its file.
SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv"}


@click.command(epilog=_EPILOG, context_settings={"show_default": True})
@click.argument("number", type=click.Choice(("1", "2")))
@click.option("--results", type=NamedPath(), default=Path("results"), help="Folder of finished runs.")
@click.option("--out", type=NamedPath(), default=Path("tables"), help="Folder for the files.")
@click.option("--format", "name", type=click.Choice((*SUFFIXES, "all")), default="all", help="What is written.")
def table(number: str, results: Path, out: Path, name: str) -> None:
    """Write table NUMBER (1 or 2): our finished runs beside the numbers that the paper published.

    Runs of the whole protocol fill the paper's table; those of a reduced protocol, with changed settings or on other data
    get separate tables, which say how they differ. A cell without a run stays blank. An older table of the
    same name is replaced.
    """
    if not results.is_dir() and (results.exists() or not _by_default("results")):
        raise ValueError(f"no folder {results}: name one that holds runs with --results")
    from ntkml.machine import files
    from ntkml.tables import render
    from ntkml.tables.panels import panels

    found = panels(f"table-{number}", results)
    writers = {"markdown": render.markdown, "latex": render.latex, "csv": render.tidy}
    folder = files.ensure_writable_folder(out)
    runs = sum(len(entry.seeds) for panel in found for entry in panel.ours.values())
    click.echo(f"{counted(runs, 'finished run')} of table {number} under {results}")
    chosen = {one: writers[one](found).encode() for one in (SUFFIXES if name == "all" else [name])}
    for one, text in chosen.items():
        click.echo(f"Wrote {files.write_atomically(folder / f'table-{number}.{SUFFIXES[one]}', text)}")


def _by_default(name: str) -> bool:
    """Whether nobody typed the parameter: without any runs a table still shows the published numbers."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.DEFAULT
