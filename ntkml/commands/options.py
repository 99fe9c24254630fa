"""Options that several commands have alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ntkml.commands.types import COUNT, SAMPLES, SEEDS, ChunkSize, LearnedHparam, NamedPath
from ntkml.protocols.tables import VARIANTS

#: What a command may compute on, which :func:`ntkml.commands.devices.device_named` takes.
device_option = click.option(
    "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", help="auto: a GPU if there is one."
)
chunk_option = click.option(
    "--chunk", type=ChunkSize(), default="auto", help="Inputs per chunk; smaller chunks take less memory."
)
data_root_option = click.option(
    "--data-root", type=NamedPath(), help="Data folder.  [default: $NTKML_DATA, ~/.cache/ntkml]"
)
download_option = click.option("--download", is_flag=True, help="Fetch missing data files into the data root.")
out_option = click.option("--out", type=NamedPath(), default=Path("results"), help="Folder for results.")
figures_option = click.option("--figures", type=NamedPath(), default=Path("figures"), help="Folder for the picture.")

protocol_variant_option = click.option(
    "--protocol-variant",
    type=click.Choice(VARIANTS),
    default="paper",
    help="Whose settings where paper and authors' code differ.",
)
compared_hparam_option = click.option(
    "--hparam",
    type=LearnedHparam(),
    required=True,
    help="What is learned; rotation is a synonym of invariance.",
)
fresh_blocks_option = click.option(
    "--fresh-blocks/--kept-blocks",
    default=None,
    help="Draw blocks for every prior step, or once for all steps of an update (cheaper).  [default: the protocol's]",
)

#: Settings that mean something to one learned hyperparameter alone, and to which.
_OF_ONE_HPARAM = {"samples": "invariance", "aug_steps": "invariance", "lr_aug": "invariance", "fresh_blocks": "prior"}


def setting(name: str, kind: click.ParamType, text: str, field: str = "") -> Callable[[Any], Any]:
    """An option that replaces one setting of the protocol; ``field`` where the setting has another name."""
    names = (name, field) if field else (name,)
    return click.option(*names, type=kind, default=None, help=f"{text}  [default: the protocol's]")


#: What a comparison may change in all of its training runs, by the names of the settings.
_OF_ALL_RUNS = {
    "epochs": setting("--epochs", COUNT, "Epochs of every fit."),
    "num_data": setting("--num-data", COUNT, "Training images N."),
    "samples": setting("--samples", SAMPLES, "Augmentation samples S (invariance)."),
    "fresh_blocks": fresh_blocks_option,
}


def computing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where training runs are computed, on which data and into which folder, in the order of the help text."""
    for option in (out_option, download_option, data_root_option, chunk_option, device_option):
        command = option(command)
    return command


def compared_runs_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The seeds of a comparison and the settings of all its training runs, which :func:`compared_settings` reads."""
    for option in reversed(_OF_ALL_RUNS.values()):
        command = option(command)
    return setting("--seeds", SEEDS, "Comma-separated seeds.")(command)


def compared_settings(hparam: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line changes in all training runs of a comparison; settings that are not given are left out.

    Raises:
        click.BadParameter: see :func:`check_hparam`.
    """
    check_hparam(hparam, options)
    return {name: options[name] for name in _OF_ALL_RUNS if options[name] is not None}


def check_hparam(hparam: str, options: Mapping[str, Any]) -> None:
    """Refuse what would change nothing when ``hparam`` is learned.

    Raises:
        click.BadParameter: a setting of the other hyperparameter is given; says which one it belongs to.
    """
    for name, owner in _OF_ONE_HPARAM.items():
        if options.get(name) is not None and hparam != owner:
            option = "--fresh-blocks/--kept-blocks" if name == "fresh_blocks" else f"--{name.replace('_', '-')}"
            raise click.BadParameter(f"belongs to --hparam {owner}", param_hint=option)
