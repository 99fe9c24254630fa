"""What every cell of a bound grid shares: data, trained network, noise, and the partition of every estimator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.datasets import ImageDataset, subset
from ntkml.dichotomies import NestedDichotomy
from ntkml.grouping import partition_for, tree_for
from ntkml.hyperparameters.affine import draw_noise, rotation_eta
from ntkml.learning.map_training import train_map
from ntkml.likelihoods import Categorical
from ntkml.models import build_model
from ntkml.parameters import trainable_parameters
from ntkml.partitions import Partition
from ntkml.protocols.bound_grid import BoundGridProtocol
from ntkml.randomness import generator_for
from ntkml.records.manifests import settings_id
from ntkml.rows.exact import RowPlan
from ntkml.rows.model_contract import check_model
from ntkml.runs.learned import Learned
from ntkml.runs.progress import Track
from ntkml.runs.weights import SavedWeights, load_weights, read_weights, save_weights
from ntkml.specs import EXACT, EstimatorSpec, parse_estimator, resolve_estimator

#: Memory of the Jacobian table and its float64 Grams beyond which a run is refused, in bytes.
TABLE_BUDGET_BYTES = 16 * 2**30


@dataclass(frozen=True)
class BoundGrid:
    """What is to be computed: a protocol, its data, and weights (or None: they are trained).

    ``block_rows``: whether every block gets a row beside the aggregates. ``notes``: sentences that every caption must
    show, beside the protocol's own. ``device``: where it is computed, the weights' training too.
    """

    protocol: BoundGridProtocol
    data: ImageDataset
    given: Learned | None = None
    block_rows: bool = True
    notes: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number in the rows but for rounding; the run's id is its hash."""
        settings = asdict(self.protocol)
        for words in ("name", "title", "notes"):
            del settings[words]
        weights = self.given.weights.checksum if self.given else "trained"
        given: dict[str, Any] = {"weights": weights, "data_checksum": self.data.checksum}
        if self.given and self.protocol.hparam == "rotation":
            given |= {"prior_precisions": self.given.prior_precisions, "eta": self.given.eta}
        return settings | given | {"block_rows": self.block_rows, "dtype": "float32"}

    @property
    def run_id(self) -> str:
        return settings_id(self.settings)

    @property
    def captions(self) -> list[str]:
        """The protocol's notes say how weights are trained; given weights make them untrue."""
        if self.given is None:
            return [*self.protocol.notes, *self.notes, *self.data.notes]
        grid = f"{self.protocol.hparam.capitalize()} grid"
        used = f"at prior precision {self.protocol.training.prior_precision:g}"
        if self.given.prior_precisions:
            used = f"at the prior precisions{' and other half-widths' if self.given.eta else ''} of that run"
        swept = [f"{grid}: {used}."] if self.protocol.hparam == "rotation" else []
        learned = f"{grid}: {self.given.description[0].lower()}{self.given.description[1:]}"
        return [learned, *swept, *self.notes, *self.data.notes]


@dataclass(frozen=True)
class Setup:
    """A bound grid made ready: everything that its cells share."""

    grid: BoundGrid
    train: ImageDataset
    model: nn.Module
    plan: RowPlan
    noise: Tensor | None
    tree: NestedDichotomy | None
    partitions: dict[EstimatorSpec, Partition]
    num_params: int


def resolve_protocol(protocol: BoundGridProtocol, data: ImageDataset) -> BoundGridProtocol:
    """The protocol with every estimator resolved on the data, each once and EXACT first, and the data's own name.

    Raises:
        ValueError: more data than there are, an estimator that cannot be built on them, or a precision of zero.
    """
    available = len(data.train_inputs)
    if protocol.num_data > available:
        raise ValueError(f"--num-data {protocol.num_data}: {data.name} has {available} training images")
    if protocol.hparam == "prior" and protocol.grid.start <= 0:
        raise ValueError(f"a prior precision must be positive; the grid starts at {protocol.grid.start:g}")
    names = (EXACT, *protocol.estimators)
    specs = [resolve_estimator(parse_estimator(name), protocol.num_data, data.num_classes) for name in names]
    return replace(protocol, dataset=data.name, estimators=tuple(dict.fromkeys(str(spec) for spec in specs)))


def set_up(grid: BoundGrid, folder: Path, track: Track) -> Setup:
    """Train or load the weights (kept in ``folder``), draw the noise and make the partitions.

    Raises:
        ValueError: weights of another network, a network that cannot be captured, or tables beyond the memory budget.
    """
    protocol = grid.protocol
    train = _training_part_on(grid.device, subset(grid.data, protocol.num_data, generator_for(protocol.seed, "data")))
    model = build_model(protocol.model, train.input_shape, train.num_classes, generator_for(protocol.seed, "init"))
    model.to(grid.device)
    num_params = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    _check_memory(protocol.num_data * train.num_classes, num_params)
    _train_or_load(model, grid, train, folder / "weights.pt", track)
    model.eval()
    plan = check_model(model, train.train_inputs)
    noise = None
    if protocol.hparam == "rotation":
        noise = draw_noise(protocol.num_data, protocol.samples, generator_for(protocol.seed, "augmentation"))
    partitions = {}
    for name in track(protocol.estimators, len(protocol.estimators), "partitions"):
        spec = parse_estimator(name)
        # Every estimator starts the same stream, so that blocks of one size hold the same inputs in all of them. Features
        # and kernels are those of the images as they are: one partition serves the whole grid.
        stream = generator_for(protocol.seed, "partition")
        partitions[spec] = partition_for(
            spec, model, train.train_inputs, train.train_targets, Categorical(), stream, plan
        )
    return Setup(grid, train, model, plan, noise, tree_for(model, train.num_classes), partitions, num_params)


def _training_part_on(device: torch.device, data: ImageDataset) -> ImageDataset:
    inputs, targets = data.train_inputs.to(device), data.train_targets.to(device)
    return replace(data, train_inputs=inputs, train_targets=targets)


def _check_memory(num_pairs: int, num_params: int) -> None:
    # Rows and what KFAC keeps; then two full Grams, a cut of one, and a factorisation with its copies (measured).
    needed = 6 * num_pairs * num_params + 7 * 8 * min(num_pairs, num_params) ** 2
    if needed > TABLE_BUDGET_BYTES:
        raise ValueError(
            f"{num_pairs} index pairs and {num_params} parameters need about {needed / 2**30:.0f} GiB "
            f"(limit {TABLE_BUDGET_BYTES / 2**30:.0f} GiB): lower --num-data"
        )


def _train_or_load(model: nn.Module, grid: BoundGrid, train: ImageDataset, saved: Path, track: Track) -> None:
    """Given weights, those that an earlier start left, or weights trained now; they are saved in all cases."""
    protocol, settings = grid.protocol, grid.protocol.training
    if grid.given is not None or saved.exists():
        load_weights(
            model, grid.given.weights if grid.given else _earlier_weights(saved), f"{protocol.model} on {train.name}"
        )
    else:
        eta = rotation_eta(settings.rotation) if settings.rotation else None
        stream = generator_for(protocol.seed, "training")
        x, y = train.train_inputs, train.train_targets
        epochs = train_map(model, x, y, Categorical(), settings, eta, stream)
        for _ in track(epochs, settings.epochs, "training epochs"):
            pass
    if not saved.exists():
        save_weights(saved, model)


def _earlier_weights(saved: Path) -> SavedWeights:
    try:
        return read_weights(saved)
    except ValueError as error:
        raise ValueError(f"{error}; this run's own weights are damaged: start again with --force") from None
