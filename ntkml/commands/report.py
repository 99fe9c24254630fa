"""``ntkml report``: everything in a results folder as one HTML page; torch is never imported."""

from __future__ import annotations

from pathlib import Path

import click

from ntkml.commands.types import NamedPath

_EPILOG = """\b
Examples:
  ntkml report
  ntkml report --results results/reference --out report.html
"""


@click.command(epilog=_EPILOG, context_settings={"show_default": True})
@click.option("--results", type=NamedPath(), default=Path("results"), help="Folder of finished runs.")
@click.option("--out", type=NamedPath(), default=Path("report.html"), help="The page to write.")
def report(results: Path, out: Path) -> None:
    """Write one self-contained HTML page: every figure that the runs allow, sortable tables, and the manifest of each run.

    It opens from disk without a network. An older report of the same name is replaced; another file is not.
    """
    from ntkml.machine import files
    from ntkml.machine.messages import counted
    from ntkml.report.contents import gather
    from ntkml.report.page import render_page

    if out.is_dir():
        raise click.BadParameter(f"{out} is a folder: name a file, such as {out / 'report.html'}", param_hint="--out")
    if out.exists() and b"<title>ntkml report" not in out.read_bytes()[:1000]:
        raise click.BadParameter(f"{out} exists and is no report of ntkml: name another file", param_hint="--out")
    files.check_writable_folder(out.parent)
    contents = gather(results)
    page = render_page(contents).encode(errors="backslashreplace")
    files.ensure_writable_folder(out.parent)
    files.write_atomically(out, page)
    shown = (("figure", contents.pictures), ("table", contents.tables), ("run", contents.runs))
    click.echo(", ".join(counted(len(these), noun) for noun, these in shown))
    click.echo(f"Wrote {out}")
