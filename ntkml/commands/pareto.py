"""``ntkml pareto``: what estimators reach when they are optimised, against what one estimate costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ntkml.commands.options import computing_options, fresh_blocks_option
from ntkml.commands.progress import track, warn
from ntkml.commands.stops import EXIT_CODES, Stops, orderly_stops
from ntkml.commands.types import COUNT, SAMPLES, EstimatorList, LearnedHparam, SeedList
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
@click.option(
    "--hparam",
    type=LearnedHparam(),
    required=True,
    help="What is learned; rotation is another word for invariance.",
)
@click.option(
    "--protocol",
    default="pareto-digits",
    help="Cells to compare: pareto-digits, figure-1, figure-1-reduced or figure-13.",
)
@click.option("--estimators", type=EstimatorList(), help="Comma-separated names.  [default: the protocol's]")
@click.option("--seeds", type=SeedList(), help="Comma-separated seeds.  [default: the protocol's]")
@click.option("--epochs", type=COUNT, help="Epochs of every cell.  [default: the protocol's]")
@click.option("--num-data", type=COUNT, help="Training images N.  [default: the protocol's]")
@click.option("--samples", type=SAMPLES, help="Augmentation samples S (invariance).  [default: the protocol's]")
@fresh_blocks_option
@click.option("--repeats", type=COUNT, help="Timed estimates of every estimator.  [default: the protocol's]")
@click.option("--finished", is_flag=True, help="Train nothing: compare the training cells that are finished.")
@click.option("--exact/--no-exact", default=True, help="Compute the exact value at the end of every first seed.")
@computing_options
@click.option("--figures", type=click.Path(path_type=Path), default=Path("figures"), help="Folder for the picture.")
@click.option("--force", is_flag=True, help="Time again what is finished; finished training cells are reused.")
def pareto(hparam: str, protocol: str, **options: Any) -> None:
    """Seconds per estimate and gradient against the log marginal likelihood that optimising each estimator reaches.

    The training cells are runs of `ntkml train` under --out: finished ones are reused, stopped ones go on, missing ones
    are run. Writes one row per estimator with its timing, and the joined rows of all cells, from which `ntkml plot
    figure-8` to `figure-11` draw trajectories. Time on a machine that does nothing else.
    """
    for name, owner in (("samples", "invariance"), ("fresh_blocks", "prior")):
        if options[name] is not None and hparam != owner:
            raise click.BadParameter(f"belongs to --hparam {owner}", param_hint=f"--{name.replace('_', '-')}")
    changed = ("epochs", "num_data", "samples", "fresh_blocks")
    settings = {key: options[key] for key in changed if options[key] is not None}
    try:
        cells = pareto_protocols.load_pareto(protocol, hparam)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--protocol") from None
    try:
        cells = pareto_protocols.restricted(cells, options["estimators"], options["seeds"], settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with orderly_stops() as stops:
        _run(replace(cells, repeats=options["repeats"] or cells.repeats), options, stops)


def _run(protocol: ParetoProtocol, options: dict[str, Any], stops: Stops) -> None:
    """The heavy wing: torch is imported from here on."""
    from ntkml.commands.devices import device_named
    from ntkml.machine import files
    from ntkml.runs.folders import complete_replacement, finished, replace_when_finished
    from ntkml.runs.pareto import ParetoRun, only_finished, resolve_cells, run_pareto
    from ntkml.runs.stopping import Stopped

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
    files.check_writable_folder(options["figures"], "--figures")
    complete_replacement(folder)
    if not options["force"] and finished(folder):
        click.echo(f"Finished already: {folder} (--force times again)")
    else:
        counts = f"{len(protocol.cells)} training cells, {len(protocol.compared)} estimators"
        click.echo(f"{protocol.title}: {protocol.hparam} on {protocol.dataset}, {counts} on {device.type}")

        def compute(into: Path) -> Path:
            return run_pareto(run, options["out"], into, track, warn, stops.requested)

        try:
            with stops.after_the_step():
                replace_when_finished(folder, compute) if options["force"] else compute(folder)
        except Stopped as stopped:
            again = (
                "the same command continues its training and times again"
                if options["force"]
                else "the same command continues it"
            )
            warn(f"Stopped by {stopped.reason}: {again}")
            raise click.exceptions.Exit(EXIT_CODES[stopped.reason]) from None
    _draw(folder, options["figures"])


def _data(protocol: ParetoProtocol, options: dict[str, Any]) -> dict[str, ImageDataset]:
    from ntkml.datasets import load_dataset

    names = dict.fromkeys(cell.protocol.dataset for cell in protocol.cells)
    return {name: load_dataset(name, options["data_root"], options["download"]) for name in names}


def _draw(folder: Path, figures: Path) -> None:
    from ntkml.figures import pareto, render
    from ntkml.protocols.training_figures import ANY_PARETO
    from ntkml.records import pareto as pareto_records
    from ntkml.records.manifests import read_manifest

    rows = pareto_records.read_rows(folder / "rows.csv")
    manifest = read_manifest(folder / "manifest.json")
    picture = pareto.draw(ANY_PARETO, rows, manifest["notes"], manifest)
    pictures = render.save(picture, figures / f"pareto-{folder.name}")
    for name in ("rows.csv", "training.csv.gz", "manifest.json"):
        click.echo(f"{name + ':':<16} {folder / name}")
    for path in pictures:
        click.echo(f"{'picture:':<16} {path}")
