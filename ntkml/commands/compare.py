"""``ntkml compare``: every system that learns hyperparameters on the same data, by quality and cost."""

from __future__ import annotations

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
from ntkml.commands.types import SYSTEMS
from ntkml.machine.messages import counted
from ntkml.protocols import compare as compare_protocols

if TYPE_CHECKING:
    from ntkml.protocols.compare import CompareProtocol

_EXAMPLES = """\b
Examples:
  ntkml compare --hparam prior
  ntkml compare --hparam rotation --systems map,ntk-50-tree,augerino,grid-5 --samples 8
  ntkml compare --hparam prior --systems ntk-50-1,kfac-50-1 --fresh-blocks
  ntkml compare --hparam prior --protocol comparison-mnist --data-root ~/data
"""


@click.command("compare", epilog=_EXAMPLES, context_settings={"show_default": True})
@compared_hparam_option
@click.option("--protocol", default="comparison-digits", help="comparison-digits or comparison-mnist.")
@click.option("--systems", type=SYSTEMS, help="Comma-separated names.  [default: the protocol's]")
@compared_runs_options
@computing_options
@figures_option
@click.option("--force", is_flag=True, help="Repeat a finished comparison; finished training runs are reused.")
def compare(hparam: str, protocol: str, **options: Any) -> None:
    """Compare methods that learn hyperparameters (systems) by test performance and cost: fits, data passes and seconds.

    Systems are estimators of the marginal likelihood (ntk-50-tree, lila), hoag, sampled-K, augerino, partitioned-K, map,
    fixed-augmentation-DEGREES, grid-K, random-K, tpe-K, gp-K and cross-validation-K. Each is a run of `ntkml train` under
    --out: finished ones are reused, stopped ones resumed, missing ones run. Writes one row per system and seed, and
    draws them. `ntkml plot comparison` draws the newest comparison of every hyperparameter and data set in one picture.
    """
    settings = compared_settings(hparam, options)
    try:
        cells = compare_protocols.load_compare(protocol, hparam, options["systems"], options["seeds"], settings)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--protocol") from None
    with orderly_stops("" if options["force"] else "the same command continues it") as stops:
        _run(cells, options, stops)


def _run(protocol: CompareProtocol, options: dict[str, Any], stops: Stops) -> None:
    """Run the command; torch is imported from here on."""
    from ntkml.commands.devices import device_named
    from ntkml.datasets import load_dataset
    from ntkml.figures.drawing import COMPARISON
    from ntkml.runs.compare import CompareRun, run_compare

    data = load_dataset(protocol.cells[0].dataset, options["data_root"], options["download"])
    run = CompareRun(protocol, data, device_named(options["device"]), options["chunk"])
    try:
        count = len(run.runs)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    folder = run.folder(options["out"])
    heading = f"{protocol.title}: {protocol.hparam} on {data.name}, {counted(count, 'run')} on {run.device.type}"
    compute = partial(run_compare, run, options["out"], track=track, warn=warn, stop=stops.requested)
    compute_unless_finished(folder, compute, options, stops, heading, "compares")
    draw_finished(COMPARISON, folder, ("rows.csv", "manifest.json"), options["figures"])
