"""How ``ntkml pareto`` and ``ntkml compare`` go: computed once unless forced, stopped between steps, drawn at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ntkml.commands.progress import warn
from ntkml.commands.stops import EXIT_CODES, Stops


def compute_unless_finished(
    folder: Path,
    compute: Callable[[Path], object],
    options: Mapping[str, Any],
    stops: Stops,
    heading: str,
    verb: str,
) -> None:
    """``compute`` the comparison of ``folder`` where it is not finished, or again with --force.

    The folder for the picture is tried first, so that no hours are spent on what cannot be drawn.

    Args:
        heading: a line that says what is computed, before it is.
        verb: what is done to the training runs ("times"), of which those that are finished are reused in any case.

    Raises:
        click.exceptions.Exit: a signal stopped it.
    """
    from ntkml.machine import files
    from ntkml.runs.folders import complete_replacement, finished, replace_when_finished
    from ntkml.runs.stopping import Stopped

    force = options["force"]
    files.check_writable_folder(options["figures"], "--figures")
    complete_replacement(folder)
    if not force and finished(folder):
        click.echo(f"Finished already: {folder} (--force {verb} again)")
        return
    click.echo(heading)
    try:
        with stops.after_the_step():
            replace_when_finished(folder, compute) if force else compute(folder)
    except Stopped as stopped:
        again = f"continues its training and {verb} again" if force else "continues it"
        warn(f"Stopped by {stopped.reason}: the same command {again}")
        raise click.exceptions.Exit(EXIT_CODES[stopped.reason]) from None


def draw_finished(figure: str, folder: Path, files: tuple[str, ...], figures: Path) -> None:
    """The picture ``figure`` of the comparison in ``folder``, named after it, then where everything lies."""
    from ntkml.figures import drawing, render

    drawn = drawing.draw(figure, [folder / "rows.csv"], folder)
    pictures = render.save(drawn.figure, figures / f"{figure}-{folder.name}")
    for name in files:
        click.echo(f"{name + ':':<16} {folder / name}")
    for path in pictures:
        click.echo(f"{'picture:':<16} {path}")
