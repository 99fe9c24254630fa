"""A bound grid: train once, then every estimator over the whole grid of one hyperparameter, beside the exact value.

A run's folder holds ``weights.pt``, ``parts/`` while it is unfinished (one CSV per finished cell: an estimator of a prior
grid, a grid value of a rotation grid), and ``rows.csv`` with ``manifest.json`` when it is finished. A run that was killed
continues with the first cell that has no part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ntkml.hyperparameters.affine import affine_views, rotation_eta
from ntkml.likelihoods import Categorical
from ntkml.machine import files
from ntkml.parameters import trainable_parameters
from ntkml.priors import PriorPrecision
from ntkml.records import bound_grid as bound_records
from ntkml.records.manifests import write_manifest
from ntkml.records.provenance import now
from ntkml.records.tables import as_rows
from ntkml.rows.tabulated import JacobianTable, tabulate
from ntkml.runs import surroundings
from ntkml.runs.bound_rows import GridPoint, estimator_rows
from ntkml.runs.bound_setup import BoundGrid, Setup, set_up
from ntkml.runs.learned import with_rotation
from ntkml.runs.locks import exclusive
from ntkml.runs.progress import Track
from ntkml.specs import EXACT, EstimatorSpec, is_certified

if TYPE_CHECKING:
    import pandas

#: Images per captured chunk (inputs times views); bounds the memory of one capture to about a GiB on MiniNet.
_CHUNK_IMAGES = 1500

#: A cell's name (of its part file) and what computes its rows.
Cell = tuple[str, Callable[[], Iterator[dict[str, Any]]]]


def run_bound_grid(grid: BoundGrid, folder: Path, track: Track) -> Path:
    """Compute what is missing in ``folder`` and return the path of the finished ``rows.csv``.

    Raises:
        ValueError: see :func:`ntkml.runs.bound_setup.set_up`; what is finished in the folder is never lost.
    """
    with exclusive(folder):
        environment = surroundings.environment(grid.device)
        setup = set_up(grid, folder, track)
        parts = files.ensure_writable_folder(folder / "parts")
        label, cells = _CELLS[grid.protocol.hparam](setup)
        for name, compute in track(cells, len(cells), label):
            if not _is_whole(parts / f"{name}.csv", setup):
                bound_records.write_rows(parts / f"{name}.csv", compute())
        frame = _joined(setup, [parts / f"{name}.csv" for name, _ in cells])
        path = bound_records.write_rows(folder / "rows.csv", as_rows(frame))
        write_manifest(folder / "manifest.json", _manifest(setup, environment))
        shutil.rmtree(parts, ignore_errors=True)
    return path


def _is_whole(part: Path, setup: Setup) -> bool:
    """Whether an earlier start left this part whole; a damaged one and one of another device are computed again.

    Every aggregate row announces how many blocks it has, and a part has one for each estimator or each grid value.
    """
    if not part.exists():
        return False
    try:
        frame = bound_records.read_rows(part)
    except ValueError:
        return False
    protocol = setup.grid.protocol
    blocks = int(frame.loc[frame["block"].isna(), "num_blocks"].sum()) if setup.grid.block_rows else 0
    expected = protocol.grid.points if protocol.hparam == "prior" else len(setup.partitions)
    here = bool((frame["device"] == setup.grid.device.type).all())
    return here and len(frame) == expected + blocks


def _prior_cells(setup: Setup) -> tuple[str, list[Cell]]:
    """One cell per estimator: the rows do not depend on the prior, and one table serves all of them."""
    points = [_point(setup, value, _scalar(value)) for value in setup.grid.protocol.grid.values()]
    table = cache(partial(_table, setup, None))  # made for the first cell that is missing

    def compute(spec: EstimatorSpec) -> Iterator[dict[str, Any]]:
        return _rows(setup, spec, table(), points)

    return "estimators", [(str(spec), partial(compute, spec)) for spec in setup.partitions]


def _rotation_cells(setup: Setup) -> tuple[str, list[Cell]]:
    """One cell per grid value: its table is captured once and every estimator is cut from it.

    The prior stays at the precision that the weights were trained with, and so do the other half-widths.
    """
    given, prior = setup.grid.given, _scalar(setup.grid.protocol.training.prior_precision)
    if given and given.prior_precisions:
        kind = "scalar" if len(given.prior_precisions) == 1 else "layerwise"
        prior = PriorPrecision(torch.tensor(given.prior_precisions, dtype=torch.float64), kind)

    def compute(radians: float) -> Iterator[dict[str, Any]]:
        eta = torch.tensor(with_rotation(given.eta, radians)) if given and given.eta else rotation_eta(radians)
        table = _table(setup, eta)
        for spec in setup.partitions:
            yield from _rows(setup, spec, table, [_point(setup, radians, prior)])

    values = setup.grid.protocol.grid.values()
    return "grid points", [(f"{index:04d}", partial(compute, value)) for index, value in enumerate(values)]


_CELLS = {"prior": _prior_cells, "rotation": _rotation_cells}


def _table(setup: Setup, eta: Tensor | None) -> JacobianTable:
    """All Jacobians at one rotation (eta), averaged over the views of the shared noise; of the images without eta."""
    x, noise = setup.train.train_inputs, setup.noise
    num_views = 1 if noise is None else noise.shape[1]
    kronecker = any(spec.structure == "kfac" for spec in setup.partitions)

    def views(start: int, stop: int) -> Tensor:
        return x[start:stop] if noise is None or eta is None else affine_views(x[start:stop], eta, noise[start:stop])

    return tabulate(setup.model, views, len(x), setup.plan, num_views, max(1, _CHUNK_IMAGES // num_views), kronecker)


def _rows(
    setup: Setup, spec: EstimatorSpec, table: JacobianTable, points: Sequence[GridPoint]
) -> Iterator[dict[str, Any]]:
    protocol, x = setup.grid.protocol, setup.train.train_inputs
    common = {
        "run_id": setup.grid.run_id,
        "command": "bound-grid",
        "dataset": protocol.dataset,
        "model": protocol.model,
        "seed": protocol.seed,
        "num_data": len(x),
        "num_params": setup.num_params,
        "hparam": protocol.hparam,
        "device": x.device.type,
        "dtype": str(x.dtype).removeprefix("torch."),
    }
    partition, targets = setup.partitions[spec], setup.train.train_targets
    return estimator_rows(
        spec, partition, table, targets, Categorical(), setup.tree, points, common, setup.grid.block_rows
    )


def _point(setup: Setup, value: float, prior: PriorPrecision) -> GridPoint:
    """A grid point with -1/2 w^T P0 w in nats."""
    prior = prior.to(setup.grid.device)
    return GridPoint(value, prior, -0.5 * float(prior.quadratic_form(trainable_parameters(setup.model))))


def _scalar(precision: float) -> PriorPrecision:
    return PriorPrecision(torch.tensor([precision], dtype=torch.float64), "scalar")


def _joined(setup: Setup, parts: Sequence[Path]) -> pandas.DataFrame:
    """All parts in the order of estimators, grid and blocks, aggregates above the exact value marked."""
    frame = bound_records.read_rows(*parts)
    aggregate = frame["block"].isna()
    exact = frame[aggregate & (frame["estimator"] == EXACT)].set_index("hparam_value")["log_marginal_likelihood"]
    reference = frame["hparam_value"].map(exact)
    slack = 1e-9 * reference.abs()  # rounding of the parts and of the factorisations
    exceeds = frame["log_marginal_likelihood"] > reference + slack
    frame.loc[aggregate, "exceeds_exact"] = exceeds[aggregate]
    order = {str(spec): index for index, spec in enumerate(setup.partitions)}
    keys = frame.assign(order=frame["estimator"].map(order))
    return keys.sort_values(["order", "hparam_value", "block"], na_position="first").drop(columns="order")


def _manifest(setup: Setup, environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": setup.grid.run_id,
        "command": "bound-grid",
        "settings": setup.grid.settings,
        "environment": environment,
        "data_checksum": setup.train.checksum,
        "normalisation": asdict(applied) if (applied := setup.train.normalisation) else None,
        "estimators": {
            str(spec): {"certified": is_certified(spec), "num_blocks": len(partition)}
            for spec, partition in setup.partitions.items()
        },
        "tree": setup.tree.splits if setup.tree else None,
        "notes": setup.grid.captions,
        "finished_at": now(),
    }
