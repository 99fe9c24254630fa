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

chunk_option = click.option(
    "--chunk", type=ChunkSize(), default="auto", help="Inputs per captured chunk; less takes less memory."
)
data_root_option = click.option(
    "--data-root", type=click.Path(path_type=Path), help="Data folder.  [default: $NTKML_DATA, ~/.cache/ntkml]"
)
download_option = click.option("--download", is_flag=True, help="Fetch missing data files into the data root.")
out_option = click.option("--out", type=click.Path(path_type=Path), default=Path("results"), help="Folder for results.")

fresh_blocks_option = click.option(
    "--fresh-blocks/--kept-blocks",
    default=None,
    help="Blocks for every prior step, or one draw for all steps of an update, which is cheaper.  [default: the protocol's]",
)


def computing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where training runs are computed, on which data and into which folder, in the order of the help text."""
    for option in (out_option, download_option, data_root_option, chunk_option, device_option):
        command = option(command)
    return command


def setting(name: str, kind: click.ParamType, text: str, field: str = "") -> Callable[[Any], Any]:
    """An option that replaces one setting of the protocol; ``field`` where the setting has another name."""
    names = (name, field) if field else (name,)
    return click.option(*names, type=kind, default=None, help=f"{text}  [default: the protocol's]")
