"""``ntkml bound-grid``: all estimators over a grid of one hyperparameter."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ntkml.commands.options import (
    data_root_option,
    device_option,
    download_option,
    figures_option,
    out_option,
    protocol_variant_option,
    setting,
)
from ntkml.commands.progress import track
from ntkml.commands.stops import orderly_stops
from ntkml.commands.types import COUNT, DATASET, ESTIMATORS, POSITIVE, SAMPLES, SEED, NamedPath
from ntkml.machine.messages import counted
from ntkml.protocols.bound_grid import departures, load_bound_grid
from ntkml.records.bound_grid import HPARAMS
from ntkml.registry import MODELS

if TYPE_CHECKING:
    from ntkml.protocols.bound_grid import BoundGridProtocol

_EXAMPLES = """\b
Examples:
  ntkml bound-grid --hparam rotation
  ntkml bound-grid --hparam prior --estimators ntk-N-C,ntk-100-1,ntk-100-tree
  ntkml bound-grid --hparam prior --protocol figure-4 --data-root ~/data
"""


@click.command("bound-grid", epilog=_EXAMPLES, context_settings={"show_default": True})
@click.option("--hparam", type=click.Choice(HPARAMS), required=True, help="Hyperparameter of the grid.")
@click.option("--protocol", default="digits", help="Settings: digits, mnist-bounds, figure-3, -4, -5, -6 or -12.")
@protocol_variant_option
@setting("--dataset", DATASET, "Data set (mnist, mnist_r180, folder:PATH, ...).")
@setting("--model", click.Choice(list(MODELS)), "Network.")
@setting("--estimators", ESTIMATORS, "Comma-separated names, e.g. ntk-100-1,kfac-N-C.")
@setting("--grid-points", click.IntRange(1, 100_000), "Points of the grid.")
@setting("--samples", SAMPLES, "Augmentation samples S (rotation).")
@setting("--num-data", COUNT, "Training images N.")
@setting("--epochs", COUNT, "Training epochs of the weights.")
@setting("--prior-precision", POSITIVE, "Prior precision of the training, and throughout a rotation grid.")
@setting("--seed", SEED, "Seed of data, weights, partition and noise.")
@click.option(
    "--weights",
    type=NamedPath(),
    help="weights.pt of a run, instead of training; one of ntkml train brings its hyperparameters.",
)
@device_option
@data_root_option
@download_option
@click.option("--rows", type=click.Choice(("all", "aggregate")), default="all", help="all: also one row per block.")
@out_option
@figures_option
@click.option("--force", is_flag=True, help="Recompute a finished run.")
def bound_grid(hparam: str, protocol: str, protocol_variant: str, **options: Any) -> None:
    """Every estimator over a grid of prior precisions or rotations, beside the exact log marginal likelihood.

    Trains the weights once, saves them, writes tidy rows and a manifest under results/ and a picture under figures/.
    SIGTERM, SIGUSR1, SIGHUP and Ctrl-C end a run at once; the same command continues it with the part that was in progress.
    """
    try:
        settings = load_bound_grid(protocol, hparam, protocol_variant)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--protocol") from None
    with orderly_stops("" if options["force"] else "the same command continues it"):
        _run(_overridden(settings, options), settings, options)


def _overridden(protocol: BoundGridProtocol, options: dict[str, Any]) -> BoundGridProtocol:
    """The protocol with what the command line says instead."""
    given = {
        key: options[key]
        for key in ("dataset", "model", "estimators", "samples", "num_data", "seed")
        if options[key] is not None
    }
    if "samples" in given and protocol.hparam == "prior":
        raise click.BadParameter("augmentation samples belong to --hparam rotation", param_hint="--samples")
    if options["weights"]:
        _refuse_training(protocol.hparam, options)
    training = protocol.training
    if "samples" in given and training.rotation:
        training = replace(training, samples=given["samples"])
    changes = {key: options[key] for key in ("epochs", "prior_precision") if options[key] is not None}
    training = replace(training, **changes)
    grid = replace(protocol.grid, points=options["grid_points"] or protocol.grid.points)
    return replace(protocol, training=training, grid=grid, **given)


def _refuse_training(hparam: str, options: dict[str, Any]) -> None:
    """Refuse settings of a training that given weights take the place of; a rotation grid has its precision all the same."""
    for name in ("epochs", "prior_precision"):
        if options[name] is not None and (name, hparam) != ("prior_precision", "rotation"):
            raise click.BadParameter(
                "nothing is trained with --weights: leave it out", param_hint=f"--{name.replace('_', '-')}"
            )


def _run(protocol: BoundGridProtocol, asked: BoundGridProtocol, options: dict[str, Any]) -> None:
    """Run the command; torch is imported from here on."""
    from ntkml.commands.devices import device_named
    from ntkml.datasets import load_dataset
    from ntkml.machine import files
    from ntkml.runs.bound_grid import run_bound_grid
    from ntkml.runs.bound_setup import BoundGrid, resolve_protocol
    from ntkml.runs.folders import complete_replacement, finished, replace_when_finished
    from ntkml.runs.learned import read_learned

    device = device_named(options["device"])
    data = load_dataset(protocol.dataset, options["data_root"], options["download"])
    if options["num_data"] is None:
        protocol = replace(protocol, num_data=min(protocol.num_data, len(data.train_inputs)))
    try:
        protocol = resolve_protocol(protocol, data)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    given = read_learned(options["weights"]) if options["weights"] else None
    if given and options["prior_precision"]:  # what is asked for goes before what was learned
        given = replace(given, prior_precisions=())
    grid = BoundGrid(protocol, data, given, options["rows"] == "all", tuple(departures(protocol, asked)), device)
    folder = options["out"] / "bound-grid" / f"{protocol.hparam}-{protocol.dataset}-{grid.run_id}"
    files.check_writable_folder(options["figures"], "--figures")
    complete_replacement(folder)
    if not options["force"] and finished(folder):
        click.echo(f"Finished already: {folder} (--force computes it again)")
    else:
        sizes = f"{counted(len(protocol.estimators), 'estimator')}, {counted(protocol.grid.points, 'grid point')}"
        click.echo(f"{protocol.title}: {protocol.dataset}, N={protocol.num_data}, {sizes}")
        compute = partial(run_bound_grid, grid, track=track)
        replace_when_finished(folder, compute) if options["force"] else compute(folder)
    _draw(folder, options["figures"])


def _draw(folder: Path, figures: Path) -> None:
    """The run's picture, then where everything lies."""
    from ntkml.figures import drawing, render

    drawn = drawing.draw("bound-grid", [folder / "rows.csv"], folder)
    pictures = render.save(drawn.figure, figures / drawn.stem, ["png"])
    click.echo(f"Rows:     {folder / 'rows.csv'}")
    click.echo(f"Manifest: {folder / 'manifest.json'}")
    click.echo(f"Picture:  {', '.join(str(path) for path in pictures)}")
