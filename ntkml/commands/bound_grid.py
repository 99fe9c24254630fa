"""``ntkml bound-grid``: all estimators over a grid of one hyperparameter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ntkml import protocols
from ntkml.registry import MODELS, STRUCTURES
from ntkml.specs import GROUPINGS, parse_estimator

if TYPE_CHECKING:
    from ntkml.protocols import BoundGridProtocol

_EXAMPLES = """\b
Examples:
  ntkml bound-grid --hparam rotation
  ntkml bound-grid --hparam prior --estimators ntk-N-C,ntk-100-1,ntk-100-tree
  ntkml bound-grid --hparam prior --protocol figure-4 --data-root ~/data
"""


class EstimatorList(click.ParamType):
    """Comma-separated names of estimators."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(str(parse_estimator(name.strip())) for name in str(value).split(","))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        done, _, last = incomplete.rpartition(",")
        head = f"{done}," if done else ""
        return [CompletionItem(head + name) for name in _completions() if name.startswith(last)]


def _completions() -> list[str]:
    """Common spellings: every structure, a few sizes, every split and grouping."""
    plain = [
        f"{structure}-{inputs}-{outputs}"
        for structure in STRUCTURES
        for inputs in ("100", "500", "N")
        for outputs in ("1", "C", "tree")
    ]
    return plain + [f"ntk-100-{outputs}+{grouping}" for outputs in ("1", "C", "tree") for grouping in GROUPINGS]


@click.command("bound-grid", epilog=_EXAMPLES, context_settings={"show_default": True})
@click.option(
    "--hparam", type=click.Choice(protocols.HPARAMS), required=True, help="Hyperparameter that the grid runs over."
)
@click.option(
    "--protocol", default="digits", help="Settings to start from: digits, mnist-bounds, figure-3 ... figure-12."
)
@click.option(
    "--protocol-variant",
    type=click.Choice(protocols.VARIANTS),
    default="paper",
    help="Where paper and its code differ.",
)
@click.option("--dataset", default=None, help="Data set, with a variant such as mnist_r180.  [default: the protocol's]")
@click.option("--model", type=click.Choice(list(MODELS)), default=None, help="Network.  [default: the protocol's]")
@click.option(
    "--estimators",
    type=EstimatorList(),
    default=None,
    help="Comma-separated, e.g. ntk-100-1,kfac-N-C.  [default: the protocol's]",
)
@click.option(
    "--grid-points", type=click.IntRange(min=1), default=None, help="Points of the grid.  [default: the protocol's]"
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=None,
    help="Augmentation samples S (rotation).  [default: the protocol's]",
)
@click.option(
    "--num-data", type=click.IntRange(min=1), default=None, help="Training images N.  [default: the protocol's]"
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=None,
    help="Training epochs of the weights.  [default: the protocol's]",
)
@click.option(
    "--seed", type=int, default=None, help="Seed of data, weights, partition and noise.  [default: the protocol's]"
)
@click.option(
    "--weights",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Weights (weights.pt of a run) instead of training.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the data sets.  [default: $NTKML_DATA, else ~/.cache/ntkml]",
)
@click.option("--download", is_flag=True, help="Fetch missing data files into the data root.")
@click.option(
    "--rows", type=click.Choice(("all", "aggregate")), default="all", help="Write a row per block, or aggregates only."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), help="Folder for results.")
@click.option("--figures", type=click.Path(path_type=Path), default=Path("figures"), help="Folder for the picture.")
@click.option("--force", is_flag=True, help="Compute again what is finished.")
def bound_grid(hparam: str, protocol: str, protocol_variant: str, **options: Any) -> None:
    """Every estimator over a grid of prior precisions or rotations, beside the exact log marginal likelihood.

    Trains the weights once, saves them, writes tidy rows and a manifest under results/ and a picture under figures/. A run
    that was stopped continues where it was.
    """
    try:
        settings = protocols.load_bound_grid(protocol, hparam, protocol_variant)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--protocol") from None
    _run(_overridden(settings, options), settings, options)


def _overridden(protocol: BoundGridProtocol, options: dict[str, Any]) -> BoundGridProtocol:
    """The protocol with what the command line says instead."""
    given = {
        key: options[key]
        for key in ("dataset", "model", "estimators", "samples", "num_data", "seed")
        if options[key] is not None
    }
    if "samples" in given and protocol.hparam == "prior":
        raise click.BadParameter("augmentation samples belong to --hparam rotation", param_hint="--samples")
    training = protocol.training
    if "samples" in given and training.rotation:
        training = replace(training, samples=given["samples"])
    if options["epochs"] is not None:
        training = replace(training, epochs=options["epochs"])
    grid = replace(protocol.grid, points=options["grid_points"] or protocol.grid.points)
    return replace(protocol, training=training, grid=grid, **given)


def _run(protocol: BoundGridProtocol, asked: BoundGridProtocol, options: dict[str, Any]) -> None:
    """The heavy wing: torch is imported from here on."""
    from ntkml import records
    from ntkml.datasets import load_dataset
    from ntkml.runs import bound_grid as run

    data = load_dataset(protocol.dataset, options["data_root"], options["download"])
    available = len(data.train_inputs)
    if options["num_data"] is None:
        protocol = replace(protocol, num_data=min(protocol.num_data, available))
    try:
        protocol = run.check_protocol(protocol, data.num_classes, available)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    weights, checksum = _read_weights(options["weights"])
    block_rows = options["rows"] == "all"
    settings = run.run_settings(protocol, checksum, block_rows)
    folder = options["out"] / "bound-grid" / f"{protocol.hparam}-{protocol.dataset}-{records.run_id(settings)}"
    _make_way(folder, options["force"])
    if (folder / "manifest.json").exists():
        click.echo(f"Finished already: {folder} (--force computes it again)")
    else:
        click.echo(
            f"{protocol.title}: {protocol.dataset}, N={protocol.num_data}, {len(protocol.estimators)} estimators, {protocol.grid.points} grid points"
        )
        run.run_bound_grid(
            protocol,
            folder,
            _track,
            data=data,
            weights=weights,
            settings=settings,
            block_rows=block_rows,
            notes=_reductions(protocol, asked),
        )
    picture = _draw(folder, options["figures"])
    click.echo(f"Rows:     {folder / 'rows.csv'}")
    click.echo(f"Manifest: {folder / 'manifest.json'}")
    click.echo("Picture:  " + ", ".join(str(path) for path in picture))


def _track(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, dynamic_ncols=True, mininterval=0.5)


def _make_way(folder: Path, force: bool) -> None:
    if force and folder.exists():
        import shutil

        shutil.rmtree(folder)


def _read_weights(path: Path | None) -> tuple[dict[str, Any] | None, str | None]:
    """State dict and sha256 of a weights file."""
    if path is None:
        return None, None
    import hashlib

    import torch

    if not path.is_file():
        raise click.BadParameter(f"{path} does not exist", param_hint="--weights")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to; none of it helps the reader
        raise ValueError(
            f"{path} is not a file of weights ({type(error).__name__}): give a weights.pt of a run"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no weights (a dictionary of tensors): give a weights.pt of a run")
    return weights, hashlib.sha256(path.read_bytes()).hexdigest()


def _reductions(protocol: BoundGridProtocol, asked: BoundGridProtocol) -> list[str]:
    """Sentences that a caption must show: what differs from the protocol that was named."""
    changes = [
        f"{name} {getattr(protocol, field)} instead of {getattr(asked, field)}"
        for field, name in (
            ("dataset", "data set"),
            ("model", "model"),
            ("num_data", "N"),
            ("samples", "S"),
            ("seed", "seed"),
        )
        if getattr(protocol, field) != getattr(asked, field)
    ]
    if protocol.grid != asked.grid:
        changes.append(f"{protocol.grid.points} grid points instead of {asked.grid.points}")
    if protocol.training.epochs != asked.training.epochs:
        changes.append(f"{protocol.training.epochs} training epochs instead of {asked.training.epochs}")
    return [f"Against protocol {asked.name}: {'; '.join(changes)}."] if changes else []


def _draw(folder: Path, figures: Path) -> list[Path]:
    from ntkml import records
    from ntkml.figures import bounds, captions, render

    notes = captions.manifest_notes([records.read_manifest(folder / "manifest.json")])
    figure = bounds.draw_run(records.read_rows(folder / "rows.csv"), notes)
    return render.save(figure, records.ensure_writable_folder(figures) / f"bound-grid-{folder.name}", ["png"])
