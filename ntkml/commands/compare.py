"""``ntkml compare``: every system that learns hyperparameters on the same data, by quality and cost."""

from __future__ import annotations

from typing import Any

import click

from ntkml.commands.options import computing_options
from ntkml.commands.progress import track, warn
from ntkml.commands.stops import EXIT_CODES, Stops, orderly_stops
from ntkml.commands.types import COUNT, LearnedHparam, SeedList, SystemList
from ntkml.protocols import compare as compare_protocols

_EXAMPLES = """\b
Examples:
  ntkml compare --hparam prior
  ntkml compare --hparam rotation --systems map,ntk-50-tree,augerino,grid-5
  ntkml compare --hparam prior --protocol comparison-mnist --data-root ~/data
"""


@click.command("compare", epilog=_EXAMPLES, context_settings={"show_default": True})
@click.option(
    "--hparam",
    type=LearnedHparam(),
    required=True,
    help="What is learned; rotation is another word for invariance.",
)
@click.option("--protocol", default="comparison-digits", help="comparison-digits or comparison-mnist.")
@click.option("--systems", type=SystemList(), help="Comma-separated names.  [default: the protocol's]")
@click.option("--seeds", type=SeedList(), help="Comma-separated seeds.  [default: the protocol's]")
@click.option("--epochs", type=COUNT, help="Epochs of every fit.  [default: the protocol's]")
@click.option("--num-data", type=COUNT, help="Training images N.  [default: the protocol's]")
@computing_options
def compare(hparam: str, protocol: str, **options: Any) -> None:
    """Compare systems by what they reach on test data and what they cost: fits, data passes and seconds.

    Systems are estimators of the marginal likelihood (ntk-50-tree, lila), hoag, sampled-K, augerino, partitioned-K, map,
    fixed-augmentation-DEGREES, grid-K, random-K, tpe-K, gp-K and cross-validation-K. Each is a run of `ntkml train` under
    --out: finished ones are reused, stopped ones go on, missing ones are run. Draw it with `ntkml plot comparison`.
    """
    settings = {key: options[key] for key in ("epochs", "num_data") if options[key] is not None}
    try:
        cells = compare_protocols.load_compare(protocol, hparam, options["systems"], options["seeds"], settings)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--protocol") from None
    with orderly_stops() as stops:
        _run(cells, options, stops)


def _run(protocol: compare_protocols.CompareProtocol, options: dict[str, Any], stops: Stops) -> None:
    """The heavy wing: torch is imported from here on."""
    from ntkml.commands.devices import device_named
    from ntkml.datasets import load_dataset
    from ntkml.runs.compare import CompareRun, run_compare
    from ntkml.runs.folders import finished
    from ntkml.runs.stopping import Stopped

    data = load_dataset(protocol.cells[0].dataset, options["data_root"], options["download"])
    run = CompareRun(protocol, data, device_named(options["device"]), options["chunk"])
    try:
        count = len(run.runs)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    folder = run.folder(options["out"])
    if finished(folder):
        click.echo(f"Finished already: {folder}")
    else:
        click.echo(f"{protocol.title}: {protocol.hparam} on {data.name}, {count} runs")
        try:
            with stops.after_the_step():
                run_compare(run, options["out"], folder, track, warn, stops.requested)
        except Stopped as stopped:
            warn(f"Stopped by {stopped.reason}: the same command continues it")
            raise click.exceptions.Exit(EXIT_CODES[stopped.reason]) from None
    for name in ("rows.csv", "manifest.json"):
        click.echo(f"{name + ':':<14} {folder / name}")
