"""A search as a training run: fits with fixed hyperparameters on a part of the data, then one of the best on all of it.

Every fit is a run like any other, below ``fits/`` in the search's folder; finished ones are reused, so that a stopped
search loses the steps since its last checkpoint at most. ``rows.csv`` holds the epochs of the last fit, under the name of
the search; the manifest lists what was tried, and its ``budget`` sums all fits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ntkml.datasets import ImageDataset, subset
from ntkml.protocols.train import TrainProtocol
from ntkml.randomness import generator_for
from ntkml.records import train as train_records
from ntkml.records.finished_runs import FITS
from ntkml.records.manifests import read_manifest, write_manifest
from ntkml.records.provenance import now
from ntkml.records.tables import as_rows, write_rows
from ntkml.runs.folders import finished
from ntkml.runs.train import TrainRun
from ntkml.specs import NO_ESTIMATOR
from ntkml.system_specs import PRIOR, parse_system
from ntkml.systems.contract import split_validation
from ntkml.systems.search import best_value, folds


def run_search(run: TrainRun, folder: Path, train: Callable[[TrainRun, Path], Path]) -> Path:
    """Run the fits that are missing in ``folder``, each by ``train(fit, its folder)``, and return the path of ``rows.csv``."""
    return _Search(run, folder, train).run_all()


@dataclass
class _Search:
    run: TrainRun
    folder: Path
    train: Callable[[TrainRun, Path], Path]
    fits: list[dict[str, Any]] = field(default_factory=list)

    def run_all(self) -> Path:
        protocol = self.run.protocol
        spec = parse_system(protocol.estimator)
        data = subset(self.run.data, protocol.num_data, generator_for(protocol.seed, "data"))
        if spec.family == "cross-validation":
            splits = list(folds(protocol.num_data, spec.count, protocol.seed))
        else:
            splits = [split_validation(protocol.num_data, protocol.seed)]

        def reached(value: float) -> float:
            values = [self._fit(value, part, held_out(data, *split)) for part, split in enumerate(splits)]
            return sum(values) / len(values)

        best = best_value(spec, protocol.hparam, protocol.seed, reached)
        return self._finish(best)

    def _fit(self, value: float, part: int, data: ImageDataset) -> float:
        """The validation log likelihood of one fit, in nats per datum."""
        protocol = replace(with_value(self.run.protocol, value), num_data=len(data.train_inputs))
        folder = self.folder / FITS / f"{value:g}-{part}"
        rows, budget = self._trained(replace(self.run, protocol=protocol, data=data), folder)
        share = len(data.train_inputs) / self.run.protocol.num_data
        budget = budget | {"data_passes": budget["data_passes"] * share}
        found = float(rows[-1]["test_log_likelihood"])  # the test part of its data is the validation part
        self.fits.append({"value": value, "part": part, "validation_log_likelihood": found, "budget": budget})
        return found

    def _trained(self, run: TrainRun, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        if not finished(folder):
            self.train(run, folder)
        budget = read_manifest(folder / "manifest.json")["budget"]
        return as_rows(train_records.read_finished(folder / "rows.csv", run.protocol.epochs)), budget

    def _finish(self, best: float) -> Path:
        """The fit on all data, and the files of the search."""
        last = replace(self.run, protocol=with_value(self.run.protocol, best))
        folder = self.folder / FITS / "all-data"
        rows, budget = self._trained(last, folder)
        name = self.run.protocol.estimator
        named = {"run_id": self.run.run_id, "estimator": name, "structure": parse_system(name).family}
        path = write_rows(self.folder / "rows.csv", [row | named for row in rows], train_records.COLUMNS)
        shutil.copyfile(folder / "weights.pt", self.folder / "weights.pt")
        budgets = [*(fit["budget"] for fit in self.fits), budget]
        manifest = read_manifest(folder / "manifest.json") | {
            "run_id": self.run.run_id,
            "settings": self.run.settings,
            "notes": [*self.run.notes, *self.run.data.notes],
            "fits": self.fits,
            "best": best,
            "budget": {key: sum(one[key] for one in budgets) for key in ("fits", "data_passes", "seconds")},
            "finished_at": now(),
        }
        write_manifest(self.folder / "manifest.json", manifest)
        return path


def with_value(protocol: TrainProtocol, value: float) -> TrainProtocol:
    """The protocol of a fit at ``value``: a prior precision, or degrees of rotation, of which 0 is no augmentation."""
    if protocol.hparam == PRIOR:
        return replace(protocol, estimator=NO_ESTIMATOR, prior_init=value)
    return replace(protocol, estimator=f"fixed-augmentation-{value:g}" if value else NO_ESTIMATOR)


def held_out(data: ImageDataset, train: Tensor, validation: Tensor) -> ImageDataset:
    """A data set whose test part is the validation part of ``data``'s training part."""
    x, y = data.train_inputs, data.train_targets
    return replace(
        data,
        train_inputs=x[train],
        train_targets=y[train],
        test_inputs=x[validation],
        test_targets=y[validation],
    )
