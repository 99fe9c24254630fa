"""``ntkml train``: weights and hyperparameters learned together, one row per epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ntkml.commands.options import (
    check_hparam,
    chunk_option,
    data_root_option,
    device_option,
    download_option,
    fresh_blocks_option,
    out_option,
    protocol_variant_option,
    setting,
)
from ntkml.commands.progress import warn
from ntkml.commands.stops import EXIT_CODES, Stops, orderly_stops
from ntkml.commands.types import COUNT, DATASET, POSITIVE, SAMPLES, SECONDS, SEED, SYSTEM, TRAIN_PROTOCOL, LearnedHparam
from ntkml.machine.messages import counted
from ntkml.protocols import train as train_protocols
from ntkml.protocols.ranges import MOST, OPTIMIZERS
from ntkml.protocols.train import WORDS, TrainProtocol, departures, draws_blocks
from ntkml.registry import LIKELIHOODS, MODELS
from ntkml.specs import PRIOR_KINDS

if TYPE_CHECKING:
    from ntkml.machine.processes import Processes
    from ntkml.runs.train import TrainRun

_EXAMPLES = """\b
Examples:
  ntkml train --hparam prior
  ntkml train --hparam invariance --dataset digits_r180 --estimator kfac-100-1
  ntkml train --hparam prior --estimator none --prior-init 25
  ntkml train --dataset folder:photos@32 --model resnet18-16 --estimator ntk-100-tree
  ntkml train --hparam rotation --protocol train-mnist --data-root ~/data
  ntkml train --dataset cifar100 --estimator ntk-500-1 --device cuda
  ntkml train --protocol table-1 --hparam invariance --estimator kfac-150-1 --seed 1 --device cuda
  torchrun --nproc-per-node 4 -m ntkml train --hparam prior --blocks-per-step 4
"""
_HELD_OUT = (*WORDS, "hparam", "lr_min", "hyper_decay", "aug_decay")  # settings that no option replaces


@click.command("train", epilog=_EXAMPLES, context_settings={"show_default": True})
@click.option(
    "--hparam",
    type=LearnedHparam(),
    help="What is learned; invariance (or rotation) learns the prior precision too.  [default: prior, or what the protocol has]",
)
@click.option(
    "--protocol",
    type=TRAIN_PROTOCOL,
    help="Settings to start from, such as train-mnist or table-1.  [default: the one for the data set, else train-digits]",
)
@protocol_variant_option
@setting("--dataset", DATASET, "Data set (mnist, mnist_r180, folder:PATH, ...).")
@setting("--model", click.Choice(list(MODELS)), "Network.")
@setting(
    "--likelihood",
    click.Choice(list(LIKELIHOODS)),
    "Likelihood of the classes; all but categorical take one-hot targets.",
)
@setting(
    "--estimator",
    SYSTEM,
    "How hyperparameters are learned: an estimator, another method (hoag, grid-5, ...), or none (MAP).",
)
@setting(
    "--prior",
    click.Choice(PRIOR_KINDS),
    "One precision in total, per parameter tensor, or per parameter.",
    "prior_kind",
)
@setting("--prior-init", POSITIVE, "Initial prior precision.")
@setting("--num-data", COUNT, "Training images N.")
@setting("--samples", SAMPLES, "Augmentation samples S (invariance).")
@setting("--batch-size", COUNT, "Batch size of the weights' steps.")
@setting("--epochs", COUNT, "Epochs.")
@setting("--burn-in", click.IntRange(0, MOST), "Epoch of the first hyperparameter update.")
@setting("--update-every", COUNT, "Epochs between updates.")
@setting("--hyper-steps", COUNT, "Prior steps per update.")
@setting("--blocks-per-step", COUNT, "Blocks averaged in a hyperparameter step; processes of torchrun share them.")
@fresh_blocks_option
@setting("--aug-steps", COUNT, "Invariance steps per update.")
@setting("--lr", POSITIVE, "Learning rate of the weights.")
@setting("--lr-hyper", POSITIVE, "Learning rate of the log prior precisions.")
@setting("--lr-aug", POSITIVE, "Learning rate of the invariance.")
@click.option("--flip/--no-flip", default=None, help="Mirror batches at random.  [default: the protocol's]")
@setting("--optimizer", click.Choice(OPTIMIZERS), "Optimizer of the weights; hyperparameters take Adam.")
@setting("--eval-every", COUNT, "Epochs between evaluations on the test data.")
@setting("--seed", SEED, "Seed of data, weights, partitions and noise.")
@device_option
@click.option(
    "--precision",
    type=click.Choice(("float32", "bf16")),
    default="float32",
    help="Of the weights' steps; estimates always use float32 Jacobians and float64 linear algebra.",
)
@chunk_option
@data_root_option
@download_option
@click.option("--checkpoint-every", type=COUNT, default=10, help="Epochs between checkpoints.")
@click.option("--checkpoint-seconds", type=SECONDS, default=300, help="Most seconds between checkpoints.")
@out_option
@click.option("--force", is_flag=True, help="Recompute a finished run; restart an unfinished one.")
def train(hparam: str | None, protocol: str | None, protocol_variant: str, **options: Any) -> None:
    """Learn weights and hyperparameters together by stochastic gradients of the marginal likelihood.

    Writes one tidy row per epoch, a manifest, the weights and checkpoints under results/train/. SIGTERM, SIGUSR1, SIGHUP
    and Ctrl-C stop a run after the step in progress. The same command continues it, and its rows are those of a run that
    was not stopped; one that was killed, or stopped by a second Ctrl-C, goes on from its last checkpoint.

    torchrun starts one run in many processes, which share every batch and the blocks of every hyperparameter step.
    """
    try:
        name = protocol or train_protocols.default_name(options["dataset"])
        learned = hparam or train_protocols.default_hparam(name)
        of_run = options["estimator"], options["dataset"]
        asked = train_protocols.load_train(name, learned, protocol_variant, *of_run)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--protocol") from None
    with orderly_stops() as stops:
        _run(_overridden(asked, options), asked, options, stops)


def _overridden(asked: TrainProtocol, options: dict[str, Any]) -> TrainProtocol:
    """The protocol with what the command line says instead."""
    check_hparam(asked.hparam, options)
    if options["fresh_blocks"] is not None and not draws_blocks(estimator := options["estimator"] or asked.estimator):
        raise click.BadParameter(
            f"{estimator} has no blocks to draw from; leave the option out", param_hint="--fresh-blocks/--kept-blocks"
        )
    names = [field.name for field in fields(TrainProtocol) if field.name not in _HELD_OUT]
    return replace(asked, **{name: options[name] for name in names if options[name] is not None})


def _run(protocol: TrainProtocol, asked: TrainProtocol, options: dict[str, Any], stops: Stops) -> None:
    """Run the command; torch is imported from here on."""
    from ntkml.commands.devices import device_named
    from ntkml.datasets import load_dataset
    from ntkml.machine.processes import launched_processes
    from ntkml.runs.together import check_shares
    from ntkml.runs.train import TrainRun, follow_train
    from ntkml.runs.train_checks import resolve_protocol

    device = device_named(options["device"])
    with launched_processes(device) as processes, _following(processes):
        with processes.first_goes_ahead() if options["download"] else nullcontext():
            data = load_dataset(protocol.dataset, options["data_root"], options["download"])
        if options["num_data"] is None:
            protocol = replace(protocol, num_data=min(protocol.num_data, len(data.train_inputs)))
        try:
            protocol = resolve_protocol(protocol, data)
            check_shares(protocol, processes)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        notes = departures(protocol, asked)
        precision = options["precision"]
        notes += ["Weights trained in bfloat16 (autocast)."] if precision == "bf16" else []
        run = TrainRun(protocol, data, device, options["chunk"], tuple(notes), processes, precision)
        folder = run.folder(options["out"])
        with _stopping(stops, processes, lambda: _how_to_go_on(folder, options["force"])):
            if not processes.first:
                follow_train(run, stops.requested)
                return
            _compute(run, folder, options, stops)
    for name in ("rows.csv", "manifest.json", "weights.pt"):
        there = (folder / name).exists()  # weights may be left out where a finished run is copied
        click.echo(f"{name + ':':<14} {folder / name if there else 'missing (--force computes the run again)'}")


def _compute(run: TrainRun, folder: Path, options: dict[str, Any], stops: Stops) -> None:
    """Run what is not finished in ``folder``; a forced run is computed beside it, and continued there without ``--force``."""
    from ntkml.records.train import read_finished
    from ntkml.runs.any_run import begun, run_any
    from ntkml.runs.folders import complete_replacement, finished, replace_when_finished, replacement
    from ntkml.runs.train_journal import Pace

    force = options["force"]
    complete_replacement(folder)
    replacing = force or begun(replacement(folder))
    if not replacing and finished(folder):
        # A file that was cut short is no finished run's.
        read_finished(folder / "rows.csv", run.protocol.epochs, run.run_id)
        click.echo(f"Finished already: {folder} (--force computes it again)")
        return
    protocol = run.protocol
    size = f"N={protocol.num_data}, {counted(protocol.epochs, 'epoch')}, {protocol.estimator} on {run.device.type}"
    click.echo(f"{protocol.title}: {protocol.hparam} on {protocol.dataset}, {size}")
    pace = Pace(options["checkpoint_every"], options["checkpoint_seconds"])

    def compute(into: Path) -> Path:
        return run_any(run, into, _track, pace, warn, stops.requested)

    replace_when_finished(folder, compute, afresh=force) if replacing else compute(folder)


def _how_to_go_on(folder: Path, force: bool) -> str:
    """With a run that was stopped."""
    from ntkml.runs.any_run import begun
    from ntkml.runs.folders import replacement

    if not force:
        return "the same command continues it"
    return f"the same command {'without --force continues' if begun(replacement(folder)) else 'starts'} it"


@contextmanager
def _stopping(stops: Stops, processes: Processes, then: Callable[[], str]) -> Iterator[None]:
    """Signals wait for the step in progress; the first process says that the run was left, and ``then``, how to go on."""
    from ntkml.runs.stopping import Stopped

    try:
        with stops.after_the_step():
            yield
    except Stopped as stopped:
        if processes.first:
            warn(f"{stopped}: {then()}")
        raise click.exceptions.Exit(EXIT_CODES[stopped.reason]) from None
    except KeyboardInterrupt:
        if processes.first:
            warn(f"Interrupted: {then()}, without the steps since its last checkpoint")
        raise click.exceptions.Exit(EXIT_CODES["SIGINT"]) from None


@contextmanager
def _following(processes: Processes) -> Iterator[None]:
    """Errors of the processes behind the first one say whose they are."""
    try:
        yield
    except (ValueError, OSError, click.ClickException) as error:
        if processes.first:
            raise
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        warn(f"Error in process {processes.rank} of {processes.count}: {' '.join(message.split())}")
        raise click.exceptions.Exit(1) from None


def _track(rows: Iterable[dict[str, Any]], total: int, done: int) -> Iterator[dict[str, Any]]:
    """A progress bar with the newest log q / N, test log likelihood and |eta|."""
    from tqdm import tqdm

    shown: dict[str, str] = {}
    with tqdm(rows, total=total, initial=done, desc="epochs", dynamic_ncols=True, mininterval=0.5) as bar:
        for row in bar:
            shown |= _news(row)
            bar.set_postfix(shown, refresh=False)
            yield row


def _news(row: dict[str, Any]) -> dict[str, str]:
    etas = [row[f"eta_{index}"] for index in range(6)]
    values = {
        "log q/N": row["log_marginal_likelihood"],
        "test": row["test_log_likelihood"],
        "|eta|": None if None in etas else math.hypot(*etas),
    }
    return {name: f"{value:.3f}" for name, value in values.items() if value is not None}
