"""A bound grid: train once, then every estimator over the whole grid of one hyperparameter, beside the exact value.

A run's folder holds ``weights.pt``, ``parts/`` while it is unfinished (one CSV per finished cell: an estimator of a prior
grid, a grid value of a rotation grid), and ``rows.csv`` with ``manifest.json`` when it is finished. A run that was killed
continues with the first cell that has no part.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkml import records
from ntkml.capture import check_model, trainable_parameters
from ntkml.datasets import ImageDataset, subset
from ntkml.dichotomies import NestedDichotomy
from ntkml.evidence import partition_for, tree_for
from ntkml.hyperparameters.affine import affine_views, draw_noise, rotation_eta
from ntkml.likelihoods import Categorical
from ntkml.models import build_model
from ntkml.partitions import Partition
from ntkml.protocols import BoundGridProtocol
from ntkml.provenance import now
from ntkml.randomness import generator_for
from ntkml.runs.bound_rows import GridPoint, estimator_rows
from ntkml.specs import EstimatorSpec, is_certified, parse_estimator, resolve_estimator
from ntkml.tabulated import JacobianTable, tabulate
from ntkml.training import train_map

#: The exact log marginal likelihood of the linearised Laplace approximation, by its estimator name.
EXACT = "ntk-N-C"

#: Images per captured chunk (inputs times views); bounds the memory of one capture to about a GiB on MiniNet.
_CHUNK_IMAGES = 1500

#: Memory of the Jacobian table and its float64 Grams beyond which a run is refused, in bytes.
TABLE_BUDGET_BYTES = 16 * 2**30

#: track(iterable, total, label) yields the iterable and shows progress; the command line passes a bar with an ETA.
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Setup:
    """Everything a cell needs, made once: data, trained network, noise shared by all estimators, and partitions."""

    protocol: BoundGridProtocol
    data: ImageDataset
    model: nn.Module
    noise: Tensor | None
    tree: NestedDichotomy | None
    partitions: dict[EstimatorSpec, Partition]
    common: dict[str, Any]
    block_rows: bool

    @property
    def prior_precision(self) -> float:
        """Where the rotation grid holds the prior; the prior grid starts from it."""
        return self.protocol.training.prior_precision


def run_settings(protocol: BoundGridProtocol, weights_checksum: str | None, block_rows: bool) -> dict[str, Any]:
    """What the run's id is the hash of: everything that changes a number in its rows."""
    settings = asdict(protocol)
    for words in ("name", "title", "notes"):
        del settings[words]
    return settings | {"weights": weights_checksum or "trained", "block_rows": block_rows, "dtype": "float32"}


def check_protocol(protocol: BoundGridProtocol, num_classes: int, num_available: int) -> BoundGridProtocol:
    """The protocol with its data cut to what is there and every estimator resolved, EXACT first.

    Raises:
        ValueError: an estimator that cannot be built on these data, or a non-positive precision on the grid.
    """
    num_data = protocol.num_data
    if num_data > num_available:
        raise ValueError(f"--num-data {num_data}: {protocol.dataset} has {num_available} training images")
    specs = [resolve_estimator(parse_estimator(name), num_data, num_classes) for name in (EXACT, *protocol.estimators)]
    if protocol.hparam == "prior" and protocol.grid.start <= 0:
        raise ValueError(f"a prior precision must be positive; the grid starts at {protocol.grid.start:g}")
    names = tuple(dict.fromkeys(str(spec) for spec in specs))
    return type(protocol)(**{**_fields(protocol), "estimators": names})


def _fields(protocol: BoundGridProtocol) -> dict[str, Any]:
    return {name: getattr(protocol, name) for name in protocol.__dataclass_fields__}


def run_bound_grid(
    protocol: BoundGridProtocol,
    folder: Path,
    track: Track,
    *,
    data: ImageDataset,
    weights: dict[str, Tensor] | None = None,
    settings: dict[str, Any],
    block_rows: bool = True,
    notes: Iterable[str] = (),
) -> Path:
    """Compute what is missing in ``folder`` and return the path of the finished ``rows.csv``.

    Raises:
        ValueError: data, weights or memory that do not fit; nothing finished is lost.
    """
    records.ensure_writable_folder(folder)
    environment = records.environment()
    _check_memory(protocol, data)
    train = subset(data, protocol.num_data, generator_for(protocol.seed, "data"))
    model = _trained_model(protocol, train, folder, weights, track)
    setup = _set_up(protocol, train, model, settings, block_rows, track)
    parts = records.ensure_writable_folder(folder / "parts")
    cells = _prior_cells(setup) if protocol.hparam == "prior" else _rotation_cells(setup)
    for name, compute in track(cells, len(cells), "estimators" if protocol.hparam == "prior" else "grid points"):
        if not (parts / f"{name}.csv").exists():
            records.write_rows(parts / f"{name}.csv", compute())
    return _finish(
        setup, folder, [parts / f"{name}.csv" for name, _ in cells], environment, settings, data.checksum, notes
    )


def _check_memory(protocol: BoundGridProtocol, data: ImageDataset) -> None:
    model = build_model(protocol.model, tuple(data.train_inputs.shape[1:]), data.num_classes, generator_for(0, "size"))
    num_params = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    pairs = protocol.num_data * data.num_classes
    needed = 4 * pairs * num_params + 3 * 8 * min(pairs, num_params) ** 2
    if needed > TABLE_BUDGET_BYTES:
        raise ValueError(
            f"{pairs} index pairs and {num_params} parameters need about {needed / 2**30:.0f} GiB "
            f"(limit {TABLE_BUDGET_BYTES / 2**30:.0f} GiB): lower --num-data"
        )


def _trained_model(
    protocol: BoundGridProtocol, train: ImageDataset, folder: Path, weights: dict[str, Tensor] | None, track: Track
) -> nn.Module:
    """The network with given weights, those of an earlier start, or weights trained now and saved."""
    shape = tuple(train.train_inputs.shape[1:])
    model = build_model(protocol.model, shape, train.num_classes, generator_for(protocol.seed, "init"))
    saved = folder / "weights.pt"
    if weights is None and saved.exists():
        weights = torch.load(saved, weights_only=True)
    if weights is not None:
        try:
            model.load_state_dict(weights)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(
                f"the weights do not fit {protocol.model} on {train.name}: {str(error).splitlines()[-1].strip()}"
            ) from None
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise ValueError("the weights hold NaN or infinite values")
    else:
        settings = protocol.training
        eta = rotation_eta(settings.rotation) if settings.rotation else None
        epochs = train_map(
            model,
            train.train_inputs,
            train.train_targets,
            Categorical(),
            settings,
            eta,
            generator_for(protocol.seed, "training"),
        )
        for _ in track(epochs, settings.epochs, "training epochs"):
            pass
    if not saved.exists():
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        records.write_atomically(saved, buffer.getvalue())
    return model.eval()


def _set_up(
    protocol: BoundGridProtocol,
    train: ImageDataset,
    model: nn.Module,
    settings: dict[str, Any],
    block_rows: bool,
    track: Track,
) -> Setup:
    check_model(model, train.train_inputs)
    x, y = train.train_inputs, train.train_targets
    partitions = {}
    for name in track(protocol.estimators, len(protocol.estimators), "partitions"):
        spec = parse_estimator(name)
        # Every estimator starts the same stream, so that blocks of one size hold the same inputs in all of them.
        partitions[spec] = partition_for(spec, model, x, y, Categorical(), generator_for(protocol.seed, "partition"))
    noise = None
    if protocol.hparam == "rotation":
        noise = draw_noise(len(x), protocol.samples, generator_for(protocol.seed, "augmentation"))
    common = {
        "run_id": records.run_id(settings),
        "command": "bound-grid",
        "dataset": protocol.dataset,
        "model": protocol.model,
        "seed": protocol.seed,
        "num_data": len(x),
        "num_params": sum(parameter.numel() for parameter in trainable_parameters(model).values()),
        "hparam": protocol.hparam,
        "device": x.device.type,
        "dtype": str(x.dtype).removeprefix("torch."),
    }
    return Setup(protocol, train, model, noise, tree_for(model), partitions, common, block_rows)


Cell = tuple[str, Callable[[], Iterator[dict[str, Any]]]]


def _prior_cells(setup: Setup) -> list[Cell]:
    """One cell per estimator: the rows do not depend on the prior, and one table serves all of them."""
    square = -2.0 * _log_prior(setup.model, 1.0)
    points = [GridPoint(value, value, -0.5 * value * square) for value in setup.protocol.grid.values()]
    tables: list[JacobianTable] = []  # filled by the first cell that is missing

    def compute(spec: EstimatorSpec) -> Iterator[dict[str, Any]]:
        if not tables:
            tables.append(_table(setup, None))
        return _rows(setup, spec, tables[0], points)

    return [(str(spec), lambda spec=spec: compute(spec)) for spec in setup.partitions]  # type: ignore[misc]


def _rotation_cells(setup: Setup) -> list[Cell]:
    """One cell per grid value: its table is captured once and every estimator is cut from it."""
    log_prior = _log_prior(setup.model, setup.prior_precision)

    def compute(value: float) -> Iterator[dict[str, Any]]:
        table = _table(setup, rotation_eta(value))
        for spec in setup.partitions:
            yield from _rows(setup, spec, table, [GridPoint(value, setup.prior_precision, log_prior)])

    values = setup.protocol.grid.values()
    return [(f"{index:04d}", lambda value=value: compute(value)) for index, value in enumerate(values)]  # type: ignore[misc]


def _table(setup: Setup, eta: Tensor | None) -> JacobianTable:
    x, noise = setup.data.train_inputs, setup.noise
    num_views = 1 if noise is None else noise.shape[1]
    kronecker = any(spec.structure == "kfac" for spec in setup.partitions)

    def views(start: int, stop: int) -> Tensor:
        return x[start:stop] if noise is None or eta is None else affine_views(x[start:stop], eta, noise[start:stop])

    return tabulate(setup.model, views, len(x), num_views, max(1, _CHUNK_IMAGES // num_views), kronecker)


def _rows(setup: Setup, spec: EstimatorSpec, table: JacobianTable, points: list[GridPoint]) -> Iterator[dict[str, Any]]:
    return estimator_rows(
        spec,
        setup.partitions[spec],
        table,
        setup.data.train_targets,
        Categorical(),
        setup.tree,
        points,
        setup.common,
        setup.block_rows,
    )


def _log_prior(model: nn.Module, precision: float) -> float:
    """-1/2 w^T P0 w in nats."""
    weights = trainable_parameters(model).values()
    return -0.5 * precision * sum(float(weight.detach().double().square().sum()) for weight in weights)


def _finish(
    setup: Setup,
    folder: Path,
    parts: list[Path],
    environment: dict[str, Any],
    settings: dict[str, Any],
    checksum: str,
    notes: Iterable[str],
) -> Path:
    """Join the parts, mark aggregates above the exact value, write rows and manifest, then drop the parts."""
    frame = records.read_rows(*parts)
    exact = frame[(frame["estimator"] == EXACT) & frame["block"].isna()].set_index("hparam_value")[
        "log_marginal_likelihood"
    ]
    aggregate = frame["block"].isna()
    reference = frame["hparam_value"].map(exact)
    slack = 1e-9 * reference.abs()  # rounding of the CSV and of the factorisations
    frame.loc[aggregate, "exceeds_exact"] = (frame["log_marginal_likelihood"] > reference + slack)[aggregate]
    order = {str(spec): index for index, spec in enumerate(setup.partitions)}
    frame = frame.assign(order=frame["estimator"].map(order)).sort_values(
        ["order", "hparam_value", "block"], na_position="first"
    )
    rows_path = folder / "rows.csv"
    rows = frame.drop(columns="order").astype(object).where(lambda values: values.notna(), None)
    records.write_rows(rows_path, rows.to_dict("records"))
    records.write_manifest(
        folder / "manifest.json",
        {
            "run_id": setup.common["run_id"],
            "command": "bound-grid",
            "settings": settings,
            "environment": environment,
            "data_checksum": checksum,
            "estimators": {
                str(spec): {"certified": is_certified(spec, setup.data.num_classes), "num_blocks": len(partition)}
                for spec, partition in setup.partitions.items()
            },
            "tree": [[list(left), list(right)] for left, right in setup.tree.splits] if setup.tree else None,
            "notes": [*setup.protocol.notes, *notes],
            "finished_at": now(),
        },
    )
    shutil.rmtree(folder / "parts")
    return rows_path
