"""A Bayesian model on one block of its data: the terms that the block gives, and their gradients, in chunks that fit into memory.

Whatever knows of a partition stands above (:mod:`ntkml.objective`), the chunks themselves below (:mod:`ntkml.two_pass`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ntkml.arguments import whole_numbers_explained
from ntkml.augmentations import Augmentation, check_views
from ntkml.bayesian_model import BayesianModel
from ntkml.dichotomies import NestedDichotomy
from ntkml.likelihoods import Likelihood, factor_columns
from ntkml.partitions import Block, is_count
from ntkml.rows.capture import OutdatedPlanError
from ntkml.rows.chunking import automatic_chunk, in_memory
from ntkml.rows.exact import RowPlan
from ntkml.rows.model_contract import check_model
from ntkml.rows.plan_in_force import PlanInForce
from ntkml.specs import EstimatorSpec, parse_estimator
from ntkml.structures import structure_named
from ntkml.two_pass import BlockData, FirstPass, TwoPass

Result = TypeVar("Result")


class BlockwiseModel(BayesianModel):
    """A Bayesian model with an estimator, and what that asks of one block.

    ``tree``: over the classes, for ``tree`` rows. ``chunk``: inputs that are captured at a time, None until it is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: str | EstimatorSpec,
        likelihood: str | Likelihood,
        prior: str,
        prior_precision: float | Tensor,
        augmentation: Augmentation | None,
        chunk: int | None,
    ):
        super().__init__(model, likelihood, prior, prior_precision, augmentation)
        if chunk is not None and not is_count(chunk):
            raise ValueError(f"chunk must be a positive number of inputs, got {chunk}")
        self.estimator = parse_estimator(str(estimator))
        self.chunk = chunk
        self.tree: NestedDichotomy | None = None
        self._plan_in_force: PlanInForce | None = None

    def _data(self, block: Block, inputs: Tensor, targets: Tensor, share: float, noise: Tensor | None) -> BlockData:
        """A block that shares ``share`` of its inputs' likelihood; ``noise``: of its views, which are the same whenever they are made."""

        def views(part: slice) -> Tensor:
            return self._views(inputs[part], None if noise is None else noise[part])

        return BlockData(block, inputs, targets, views, self._num_views, share)

    def _value(self, data: BlockData) -> tuple[Tensor, Tensor]:
        """:meth:`_terms` alone."""
        return self._in_memory(data, lambda passes: self._terms(data, passes.first(data, adjoint=False)))

    def _kept(self, data: BlockData) -> FirstPass:
        """A block for many priors."""

        def prepared(passes: TwoPass) -> FirstPass:
            first = passes.first(data, adjoint=False)
            with torch.no_grad():
                first.structure.prepare(self.prior.kind)
            return first

        return self._in_memory(data, prepared)

    def _add_gradients(self, data: BlockData, weight: float, num_data: int) -> tuple[Tensor, Tensor]:
        """Gradients of -weight (rho - 1/2 log-determinant) / N of one block in what enters the forward pass.

        Returns what :meth:`_terms` does; the rows of one block are alive at a time.
        """
        targets = self._forward_hyperparameters

        def both(passes: TwoPass) -> tuple[tuple[Tensor, Tensor], list[Tensor | None]]:
            first = passes.first(data, adjoint=bool(targets))
            terms = self._terms(data, first)  # before the adjoint: a matrix that cannot be factorised is named here
            return terms, passes.second(data, first, self._scaled_prior, targets) if targets else []

        terms, gradients = self._in_memory(data, both)
        for parameter, gradient in zip(targets, gradients, strict=True):
            if gradient is not None:
                step = -weight / num_data * gradient
                parameter.grad = step if parameter.grad is None else parameter.grad + step
        return terms

    def _terms(self, data: BlockData, first: FirstPass) -> tuple[Tensor, Tensor]:
        """rho and log-determinant of one block, differentiable in prior and noise."""
        log_det = first.structure.log_det(self._scaled_prior)
        return data.share * self.likelihood.log_prob(first.outputs, data.targets).double().sum(), log_det

    def _in_memory(self, data: BlockData, compute: Callable[[TwoPass], Result]) -> Result:
        """``compute`` in chunks that fit into memory; the chunk that did is kept."""
        described = f"{data.block.num_pairs} rows ({self.estimator})"

        def in_chunks(plan: RowPlan) -> tuple[Result, int]:
            passes = self._passes(plan)
            return in_memory(
                lambda chunk: compute(replace(passes, chunk=chunk)), passes.chunk, len(data.inputs), described
            )

        result, self.chunk = self._as_planned(data.inputs, in_chunks)
        return result

    def _measured_chunk(self, data: BlockData) -> int:
        with torch.no_grad():
            example = data.views(slice(0, 1))
        factors = structure_named(self.estimator.structure).keeps == "factors"
        columns, second_pass = data.block.columns.shape[-1], bool(self._forward_hyperparameters)
        return self._as_planned(
            data.inputs, lambda plan: automatic_chunk(self.model, plan, example, columns, factors, second_pass)
        )

    def _passes(self, plan: RowPlan) -> TwoPass:
        assert self.chunk is not None
        return TwoPass(
            model=self.model,
            plan=plan,
            shapes=self._shapes,
            structure=self.estimator.structure,
            likelihood=self._likelihood_fixed,
            factor=lambda outputs, columns: factor_columns(
                self._likelihood, outputs, self.estimator.outputs, self.tree, columns
            ),
            chunk=self.chunk,
        )

    def _as_planned(self, inputs: Tensor, compute: Callable[[RowPlan], Result]) -> Result:
        """``compute`` with the network's plan, and again with a new one where the network turns out to have changed."""
        try:
            return compute(self._row_plan(inputs))
        except OutdatedPlanError:
            plan = self._row_plan(inputs, anew=True)
        return compute(plan)  # outside of the handler, which would keep what failed alive

    def _row_plan(self, inputs: Tensor, anew: bool = False) -> RowPlan:
        """The network's plan, made where there is none yet and where a module, a hook or a setting of the network changed since."""
        if anew or self._plan_in_force is None or not self._plan_in_force.holds(self.model):
            with whole_numbers_explained(self.model, inputs):
                found = PlanInForce.by(lambda: check_model(self.model, inputs), self.model, self._plan_in_force)
            if self.augmentation is not None:
                check_views(self.augmentation, inputs)
            self._plan_in_force = found
        return self._plan_in_force.plan
