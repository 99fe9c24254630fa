"""``ntkml sweep``: every training run of a protocol, by many processes, stopped and continued at will."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ntkml.commands.options import computing_options, fresh_blocks_option, setting
from ntkml.commands.stops import EXIT_CODES, Stops, orderly_stops
from ntkml.commands.types import COUNT, DATASETS, NUMBERS, SAMPLES, SEEDS, SYSTEMS, LearnedHparam
from ntkml.machine.messages import counted
from ntkml.protocols import cells as cell_protocols
from ntkml.protocols.sweep import SweepProtocol, load_sweep
from ntkml.protocols.train import draws_blocks
from ntkml.records.provenance import cores
from ntkml.runs.sweep_states import DONE, FAILED

if TYPE_CHECKING:
    from ntkml.commands.sweep_table import Screen
    from ntkml.datasets import ImageDataset
    from ntkml.runs.sweep_plan import PlannedCell
    from ntkml.runs.sweep_progress import SweepProgress
    from ntkml.runs.sweep_worker import Site

_EXAMPLES = """\b
Examples:
  ntkml sweep sweep-digits --workers 2
  ntkml sweep sweep-digits --list
  ntkml sweep train-digits --hparam prior --estimators ntk-100-1,kfac-100-1 --seeds 0,1,2 --num-data 250,500
  ntkml sweep figure-13 --data-root ~/data --workers 8
  ntkml sweep figure-1 --cluster slurm --workers 50 --slurm partition=gpu --slurm gpus_per_node=1
"""


def _has_views(cell: cell_protocols.Cell) -> bool:
    return cell.protocol.learns_invariance


def _draws_blocks(cell: cell_protocols.Cell) -> bool:
    return not cell.protocol.learns_invariance and draws_blocks(cell.protocol.estimator)


#: Settings that mean something to some cells alone: the option as it is written, which cells take it, and what those do.
_OF_SOME_CELLS = (
    ("samples", "--samples", _has_views, "learns the invariance"),
    ("fresh_blocks", "--fresh-blocks/--kept-blocks", _draws_blocks, "learns the prior from blocks that are drawn"),
)


@click.command("sweep", epilog=_EXAMPLES, context_settings={"show_default": True})
@click.argument("protocol")
@click.option(
    "--hparam",
    type=LearnedHparam(),
    help="Only cells that learn it; rotation is a synonym of invariance.  [default: all]",
)
@setting("--estimators", SYSTEMS, "Comma-separated names, or none (MAP).")
@setting("--seeds", SEEDS, "Comma-separated seeds.")
@setting("--datasets", DATASETS, "Comma-separated data sets.")
@setting("--num-data", NUMBERS, "Comma-separated numbers of images N.")
@setting("--epochs", COUNT, "Epochs of every cell.")
@setting("--samples", SAMPLES, "Augmentation samples S (invariance).")
@fresh_blocks_option
@click.option("--workers", type=COUNT, default=1, help="Processes on this machine.")
@click.option("--cluster", type=click.Choice(("slurm",)), help="Train on a cluster, --workers cells at a time.")
@click.option(
    "--slurm", multiple=True, metavar="NAME=VALUE", help="An option of sbatch: partition=gpu, time=120 (minutes)."
)
@click.option(
    "--list",
    "--dry-run",
    "only_list",
    is_flag=True,
    help="List what would be done, and do nothing. Reads the data: their checksum is part of a run's id.",
)
@computing_options
def sweep(protocol: str, hparam: str | None, **options: Any) -> None:
    """Train every cell (training run) of PROTOCOL: a sweep, a Pareto comparison, a training protocol (the cells that its
    file lists, or one) or a file of your own (my-sweep.toml; docs/extending.md shows one).

    Cells are runs of `ntkml train` under --out: finished ones are skipped, stopped ones resumed, so that the same command
    continues a sweep that was stopped, killed or moved. Several sweeps may share a folder: every cell is trained once. A
    cell that fails does not stop the others; it is named at the end, and the exit code is 1. SIGTERM, SIGUSR1, SIGHUP and
    Ctrl-C stop all workers after their step. Workers take GPUs in turn; each has $OMP_NUM_THREADS threads, or its share of the cores.

    With --cluster slurm every cell is a task of an array job (pip install 'ntkml[slurm]'), which is requeued at its time
    limit, or while another process trains its cell. The command shows their progress; the tasks go on when it is stopped.
    """
    if options["slurm"] and not options["cluster"]:
        raise click.UsageError("--slurm belongs to --cluster slurm")
    try:
        asked = load_sweep(protocol, hparam)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="PROTOCOL") from None
    chosen = _chosen(asked, options)
    with orderly_stops("the same command continues it") as stops:
        _run(chosen, options, stops)


def _chosen(protocol: SweepProtocol, options: dict[str, Any]) -> SweepProtocol:
    """The sweep with what the command line says instead."""
    cells = list(protocol.cells)
    if options["estimators"] is not None:
        cells = cell_protocols.with_estimators(cells, options["estimators"])
    for name, of_cell in (("datasets", "dataset"), ("num_data", "num_data")):
        if options[name] is not None:
            cells = cell_protocols.with_values(cells, of_cell, options[name])
    if options["epochs"] is not None:
        cells = cell_protocols.with_values(cells, "epochs", [options["epochs"]])
    for name, hint, takes_it, whose in _OF_SOME_CELLS:
        if options[name] is not None:
            if not any(map(takes_it, cells)):
                raise click.BadParameter(f"no cell {whose}", param_hint=hint)
            own = {name: options[name]}
            cells = [cell_protocols.changed(cell, own) if takes_it(cell) else cell for cell in cells]
    if options["seeds"] is not None:
        cells = cell_protocols.with_seeds(cells, options["seeds"])
    return replace(protocol, cells=tuple(cells))


def _run(protocol: SweepProtocol, options: dict[str, Any], stops: Stops) -> None:
    """Run the command; torch is imported from here on."""
    from ntkml.commands.sweep_table import Screen
    from ntkml.machine import files
    from ntkml.machine.allocator import return_freed_memory
    from ntkml.runs.sweep_plan import planned

    asked = _asked_of_slurm(options)  # before any data are read, and where tasks are only listed
    try:
        cells = planned(protocol.cells, partial(_read, options), options["out"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return_freed_memory()  # that of the data, which the workers read for themselves
    if options["only_list"]:
        _list(cells)
        return
    files.check_writable_folder(options["out"])
    if options["cluster"]:
        _train_on_cluster(protocol, cells, options, asked, stops)
        return
    sites = _sites(options)
    where = f"{counted(len(sites), 'worker')} of {counted(sites[0].threads, 'thread')}"
    click.echo(f"{protocol.title}: {counted(len(cells), 'cell')}, {where} on {sites[0].device}")
    _train(cells, sites, stops, Screen())


def _train(cells: list[PlannedCell], sites: list[Site], stops: Stops, screen: Screen) -> None:
    from ntkml.commands.sweep_table import shown
    from ntkml.runs.sweep import sweep as steps_of

    with stops.after_the_step():
        last = _last(shown(steps_of(cells, sites, screen.say, stops.requested), screen))
    _end(last, stops, "the same command continues it")


def _asked_of_slurm(options: dict[str, Any]) -> dict[str, str]:
    """The options of sbatch by name."""
    from ntkml.runs.sweep_cluster import listed

    try:
        return listed(options["slurm"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--slurm") from None


def _train_on_cluster(
    protocol: SweepProtocol, cells: list[PlannedCell], options: dict[str, Any], asked: dict[str, str], stops: Stops
) -> None:
    from ntkml.commands.sweep_table import Screen, shown
    from ntkml.runs import sweep_cluster
    from ntkml.runs.sweep_plan import state_of
    from ntkml.runs.sweep_worker import Site

    left = [cell for cell in cells if state_of(cell.folder) != DONE]
    workers = options["workers"]
    threads = _number(asked.get("cpus_per_task", "")) or _number(os.environ.get("OMP_NUM_THREADS", "")) or 1
    site = Site(_root(options), options["device"], options["chunk"], threads)  # a task knows what GPU it has
    jobs = sweep_cluster.submit(left, site, options["out"] / "slurm", workers, asked) if left else []
    ids = dict.fromkeys(str(job.job_id).partition("_")[0] for job in jobs)
    click.echo(f"{protocol.title}: {len(left)} of {len(cells)} cells as tasks of Slurm job {', '.join(ids) or 'none'}")
    tasks = dict(zip([cell.folder for cell in left], jobs, strict=True))
    screen = Screen()
    with stops.after_the_step():
        last = _last(shown(sweep_cluster.watched(cells, tasks, workers, screen.say, stops.requested), screen))
    _end(last, stops, f"the tasks go on (scancel {' '.join(ids)} ends them)")


def _last(steps: Iterable[SweepProgress]) -> SweepProgress:
    [last] = deque(steps, maxlen=1)
    return last


def _end(last: SweepProgress, stops: Stops, what_now: str) -> None:
    """The last words, and the exit code."""
    from ntkml.commands.sweep_table import duration

    before = sum(one.was_done for one in last.cells)
    words = (
        f"{last.counts[DONE]} of {len(last.cells)} cells are done, {before} were so before; {duration(last.elapsed)}"
    )
    if reason := stops.requested():
        click.echo(f"Stopped by {reason}: {words}; {what_now}", err=True)
        raise click.exceptions.Exit(EXIT_CODES[reason])
    click.echo(words)
    failed = last.having(FAILED)
    for one in failed:
        click.echo(f"failed: {one.cell.label}: {one.line} ({one.cell.folder})", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _read(options: dict[str, Any], name: str) -> ImageDataset:
    """A data set, or a click error other than those of wrong usage where it cannot be read."""
    from ntkml.datasets import load_dataset

    try:
        return load_dataset(name, options["data_root"], options["download"])
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def _sites(options: dict[str, Any]) -> list[Site]:
    """Where the workers work: GPUs in turn, and the cores shared among them unless OMP_NUM_THREADS says otherwise."""
    import torch

    from ntkml.commands.devices import device_named
    from ntkml.runs.sweep_worker import Site

    device, workers = device_named(options["device"]).type, options["workers"]
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    devices = [f"cuda:{index % gpus}" if gpus > 1 else device for index in range(workers)]
    threads = _number(os.environ.get("OMP_NUM_THREADS", "")) or max((cores() or 1) // workers, 1)
    return [Site(_root(options), name, options["chunk"], threads) for name in devices]


def _root(options: dict[str, Any]) -> str | None:
    """The data folder for processes that may start elsewhere."""
    return os.path.abspath(options["data_root"].expanduser()) if options["data_root"] else None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _list(cells: Iterable[PlannedCell]) -> None:
    """One line for every cell: where it stands, what it is, which row it fills, and its folder."""
    from ntkml.runs.sweep_plan import epochs_kept, state_of

    states = [(cell, state_of(cell.folder)) for cell in cells]
    for cell, state in states:
        epochs = cell.protocol.epochs
        kept = epochs if state == DONE else epochs_kept(cell.folder)
        row = f" [{', '.join(cell.rows)}]" if cell.rows else ""
        click.echo(f"{state:<8} {kept:>4}/{epochs:<4} {cell.label}{row}  {cell.folder}")
    done = sum(state == DONE for _, state in states)
    click.echo(f"{counted(len(states), 'cell')}, {done} done")
