"""The command line. Subcommands are imported when one of them runs: ``ntkml --help`` must not wait for torch.

Exit codes: 0, 1 for input that the library refuses and for numerical trouble (``Error: ...``, one line), 2 for wrong
usage, 75 when stopped by SIGTERM, SIGUSR1 or SIGHUP, 130 when interrupted; after 75 and 130 the same command without
``--force`` goes on. Also 1, click's choice, when whoever read the output has left.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

import ntkml
from ntkml.commands.own_process import arrange_process
from ntkml.commands.stops import ignore_signals
from ntkml.machine.memory import is_out_of_memory
from ntkml.machine.messages import one_line
from ntkml.registry import COMMANDS, resolve, unknown_name

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The list of commands needs these without importing what they describe.
SUMMARIES = {
    "bound-grid": "Every estimator over a grid of prior precisions or rotations.",
    "train": "Learn weights and hyperparameters together.",
    "pareto": "Time per estimate against the bound that is reached.",
    "compare": "Methods that learn hyperparameters, by quality and cost.",
    "sweep": "Every training run of a protocol, in many processes.",
    "table": "A table of the paper: our runs beside published numbers.",
    "plot": "Draw a figure of the paper, or of any run, from its rows.",
    "report": "All figures, tables and runs on one HTML page.",
}

EPILOG = """\b
Examples:
  ntkml bound-grid --hparam rotation
  ntkml bound-grid --hparam prior --estimators ntk-N-C,ntk-100-C,kfac-N-C
  ntkml train --hparam invariance --estimator ntk-100-tree
  ntkml pareto --hparam prior
  ntkml sweep sweep-digits --workers 2
  ntkml plot figure-2
  ntkml plot figure-3 --csv results/bound-grid/<run>/rows.csv
  ntkml report --results results/reference
"""


class LazyGroup(click.Group):
    """A group whose commands stand in the registry and are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return resolve(COMMANDS, cmd_name, "command") if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(unknown_name("command", args[0], list(COMMANDS)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=SUMMARIES[name]) for name in COMMANDS if name.startswith(incomplete)]
        return names + [item for item in super().shell_complete(ctx, incomplete) if item.value not in COMMANDS]


@click.group(
    cls=LazyGroup, epilog=EPILOG, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(ntkml.__version__, prog_name="ntkml")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Lower bounds on the log marginal likelihood of neural networks, and their figures."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    elif ctx.invoked_subcommand != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError(f"{ctx.invoked_subcommand} runs in one process: start it without torchrun")


_FULL = (errno.ENOSPC, errno.EDQUOT)  # disk, quota


def main(args: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code. Without ``args`` those of the process, which is then ours alone."""
    if args is not None:
        _run(args)
    arrange_process()
    try:
        _run(None)
    finally:  # leaving takes a moment, in which an impatient second signal would take the exit code's place
        ignore_signals()


def _run(args: list[str] | None) -> NoReturn:
    try:
        status = cli.main(args=args, prog_name="ntkml", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        click.echo(f"Error: {' '.join(error.format_message().split())}{hint}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has left (`ntkml ... | head`); nothing is wrong, and nothing more can be said.
        sys.stderr.close()
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        click.echo("Error: out of memory: lower --num-data, --samples or the size of the blocks", err=True)
        sys.exit(1)
    except (ValueError, OSError) as error:
        is_full = isinstance(error, OSError) and error.errno in _FULL
        remedy = "; free some space and give the same command again" if is_full else ""
        click.echo(f"Error: {one_line(error)}{remedy}", err=True)
        sys.exit(1)
