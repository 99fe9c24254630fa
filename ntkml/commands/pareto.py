"""``ntkml pareto``: what estimators reach when they are optimised, against what one estimate costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ntkml.commands.comparisons import compute_unless_finished, draw_finished
from ntkml.commands.options import (
    compared_hparam_option,
    compared_runs_options,
    compared_settings,
    computing_options,
    figures_option,
)
from ntkml.commands.progress import track, warn
from ntkml.commands.stops import Stops, orderly_stops
from ntkml.commands.types import COUNT, ESTIMATORS
from ntkml.machine.messages import counted
from ntkml.protocols import pareto as pareto_protocols

if TYPE_CHECKING:
    from ntkml.datasets import ImageDataset
    from ntkml.protocols.pareto import ParetoProtocol

_EXAMPLES = """\b
Examples:
  ntkml pareto --hparam prior
  ntkml pareto --hparam rotation --estimators ntk-20-1,ntk-100-1,kfac-100-1
  ntkml pareto --hparam prior --protocol figure-13 --data-root ~/data
"""


@click.command("pareto", epilog=_EXAMPLES, context_settings={"show_default": True})
@compared_hparam_option
@click.option(
    "--protocol",
    default="pareto-digits",
    help="Training runs to compare: pareto-digits, figure-1, figure-1-reduced or figure-13.",
)
@click.option("--estimators", type=ESTIMATORS, help="Comma-separated names.  [default: the protocol's]")
@compared_runs_options
@click.option("--repeats", type=COUNT, help="Timed estimates of every estimator.  [default: the protocol's]")
@click.option("--finished", is_flag=True, help="Train nothing: compare the training runs that are finished.")
@click.option(
    "--exact/--no-exact", default=True, help="Compute the exact value where the first seed of every estimator ended."
)
@computing_options
@figures_option
@click.option("--force", is_flag=True, help="Time a finished comparison again; finished training runs are reused.")
def pareto(hparam: str, protocol: str, **options: Any) -> None:
    """Seconds per estimate with gradient against the log marginal likelihood that optimising each estimator reaches.

    The training runs are those of `ntkml train` under --out: finished ones are reused, stopped ones resumed, missing ones
    run. Writes one row per estimator with its timing, and the joined rows of all training runs, from which `ntkml plot
    figure-8` to `figure-11` draw trajectories. Nothing else should run on the machine while it takes timings.
    """
    settings = compared_settings(hparam, options)
    try:
        cells = pareto_protocols.load_pareto(protocol, hparam)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--protocol") from None
    try:
        cells = pareto_protocols.restricted(cells, options["estimators"], options["seeds"], settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with orderly_stops("" if options["force"] else "the same command continues it") as stops:
        _run(replace(cells, repeats=options["repeats"] or cells.repeats), options, stops)


def _run(protocol: ParetoProtocol, options: dict[str, Any], stops: Stops) -> None:
    """Run the command; torch is imported from here on."""
    from ntkml.commands.devices import device_named
    from ntkml.protocols.training_figures import ANY_PARETO
    from ntkml.runs.pareto import ParetoRun, only_finished, resolve_cells, run_pareto

    device = device_named(options["device"])
    data = _data(protocol, options)
    try:
        protocol = resolve_cells(protocol, data)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    named = {dataset.name: dataset for dataset in data.values()}
    run = ParetoRun(protocol, named, device, options["chunk"], options["exact"])
    if options["finished"]:
        run = only_finished(run, options["out"])
        protocol = run.protocol
    folder = run.folder(options["out"])
    counts = f"{counted(len(protocol.cells), 'training cell')}, {counted(len(protocol.compared), 'estimator')}"
    heading = f"{protocol.title}: {protocol.hparam} on {protocol.dataset}, {counts} on {device.type}"
    compute = partial(run_pareto, run, options["out"], track=track, warn=warn, stop=stops.requested)
    compute_unless_finished(folder, compute, options, stops, heading, "times")
    draw_finished(ANY_PARETO, folder, ("rows.csv", "training.csv.gz", "manifest.json"), options["figures"])


def _data(protocol: ParetoProtocol, options: dict[str, Any]) -> dict[str, ImageDataset]:
    from ntkml.datasets import load_dataset

    names = dict.fromkeys(cell.protocol.dataset for cell in protocol.cells)
    return {name: load_dataset(name, options["data_root"], options["download"]) for name in names}
