"""Rows of a bound grid: every estimator cut from one table of Jacobians, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkml.dichotomies import NestedDichotomy
from ntkml.likelihoods import Likelihood
from ntkml.linalg import log_det_from_spectrum, resolves
from ntkml.machine.clock import clock
from ntkml.machine.peak_memory import peak_bytes
from ntkml.partitions import Partition
from ntkml.priors import PriorPrecision
from ntkml.rows.tabulated import JacobianTable, TabulatedRows
from ntkml.specs import EstimatorSpec, is_certified
from ntkml.structures import Structure, structure_named
from ntkml.system_specs import parts_of


@dataclass(frozen=True)
class GridPoint:
    """One value of the swept hyperparameter with the prior and -1/2 w^T P0 w (nats) that hold there."""

    value: float
    prior: PriorPrecision
    log_prior: float


@dataclass(frozen=True)
class BlockTerms:
    """What all blocks of one estimator contribute at one grid point: float64 (M,) each, seconds per block."""

    rho: Tensor
    log_det: Tensor
    seconds: Tensor


def estimator_rows(
    spec: EstimatorSpec,
    partition: Partition,
    table: JacobianTable,
    targets: Tensor,
    likelihood: Likelihood,
    tree: NestedDichotomy | None,
    points: Sequence[GridPoint],
    common: dict[str, Any],
    block_rows: bool,
) -> Iterator[dict[str, Any]]:
    """Aggregate row, and the rows of its blocks where asked for, at every point. The table is captured at those points.

    More than one point means a grid of scalar prior precisions: one eigen-decomposition per block serves all of them.
    """
    factor = likelihood.factor(table.outputs, spec.outputs, tree)
    log_prob = likelihood.log_prob(table.outputs, targets).double()
    num_data = len(targets)
    rho, log_det, seconds = [], [], []
    for block in (block.to(table.outputs.device) for block in partition.blocks):
        began = clock(log_prob.device)
        structure = structure_named(spec.structure)(
            TabulatedRows(table, block.inputs, block.select(factor[block.inputs]))
        )
        log_det.append(_log_dets(structure, points))
        rho.append(partition.share(block) * log_prob[block.inputs].sum())
        seconds.append((clock(log_prob.device) - began) / len(points))
    all_rho, all_log_det, all_seconds = torch.stack(rho).cpu(), torch.stack(log_det).cpu(), torch.tensor(seconds)
    for index, point in enumerate(points):
        terms = BlockTerms(all_rho, all_log_det[:, index], all_seconds)
        described = common | _describe(spec, table, likelihood, point, partition)
        yield from _rows_at(described, terms, partition, point.log_prior / num_data, num_data, block_rows)


@torch.no_grad()
def _log_dets(structure: Structure, points: Sequence[GridPoint]) -> Tensor:
    """log|I + K / delta| at every point's precision. Shape (points,)."""
    if len(points) == 1:
        return structure.log_det(points[0].prior).reshape(1)
    eigenvalues = structure.spectrum()
    return torch.stack(
        [
            log_det_from_spectrum(eigenvalues, point.prior.values)
            if resolves(eigenvalues, point.prior.values)
            else structure.log_det(point.prior)
            for point in points
        ]
    )


def _rows_at(
    described: dict[str, Any],
    terms: BlockTerms,
    partition: Partition,
    log_prior: float,
    num_data: int,
    block_rows: bool,
) -> Iterator[dict[str, Any]]:
    scale = 1.0 / (partition.probabilities * num_data)  # 1 / q_m, per datum
    single = scale * (terms.rho - 0.5 * terms.log_det) + log_prior
    num_blocks = len(partition)
    yield described | {
        "log_marginal_likelihood": float((terms.rho - 0.5 * terms.log_det).sum() / num_data + log_prior),
        "standard_error": float(single.std() / num_blocks**0.5) if num_blocks > 1 else None,
        "log_likelihood": float(terms.rho.sum() / num_data),
        "log_prior": log_prior,
        "log_det": float(terms.log_det.sum() / num_data),
        "seconds": float(terms.seconds.sum()),
    }
    for m in range(num_blocks) if block_rows else ():
        yield described | {
            "block": m,
            "log_marginal_likelihood": float(single[m]),
            "log_likelihood": float(scale[m] * terms.rho[m]),
            "log_prior": log_prior,
            "log_det": float(scale[m] * terms.log_det[m]),
            "seconds": float(terms.seconds[m]),
        }


def _describe(
    spec: EstimatorSpec, table: JacobianTable, likelihood: Likelihood, point: GridPoint, partition: Partition
) -> dict[str, Any]:
    return {
        "estimator": str(spec),
        **parts_of(str(spec)),
        "hparam_value": point.value,
        "block": None,
        "num_blocks": len(partition),
        "certified": is_certified(spec, likelihood.softmax),
        "standard_error": None,
        "exceeds_exact": None,
        "peak_bytes": peak_bytes(table.outputs.device),
    }
