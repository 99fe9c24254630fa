"""Options that several commands have alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ntkml.commands.types import ChunkSize

#: What a command may compute on; :func:`ntkml.commands.devices.device_named` takes it.
DEVICE = click.Choice(("auto", "cpu", "cuda"))
device_option = click.option("--device", type=DEVICE, default="auto", help="auto: a GPU if there is one.")

_COMPUTING = (
    device_option,
    click.option(
        "--chunk", type=ChunkSize(), default="auto", help="Inputs per captured chunk; less takes less memory."
    ),
    click.option(
        "--data-root", type=click.Path(path_type=Path), help="Data folder.  [default: $NTKML_DATA, ~/.cache/ntkml]"
    ),
    click.option("--download", is_flag=True, help="Fetch missing data files into the data root."),
    click.option("--out", type=click.Path(path_type=Path), default=Path("results"), help="Folder for results."),
)


def computing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where training runs are computed, on which data and into which folder, in the order of the help text."""
    for option in reversed(_COMPUTING):
        command = option(command)
    return command
