"""What one writes by hand with torch alone: torch.func Jacobians, and one autograd graph of everything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vjp, vmap
from torch.nn import functional as F

from benchmarks.cases import Problem
from benchmarks.systems.ours import objective

Rows = dict[str, Tensor]


def per_tensor_gram(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    """Rows by vmap over inputs (one vjp per factor column), a Gram matrix for every tensor, slogdet of their sum.

    The block is ntkml's, and so is the factor, so that both compute one number.
    """
    block = _Block(problem)

    def step() -> tuple[float, Tensor]:
        outputs, factor = block.factor()

        def rows_of_one(x: Tensor, columns: Tensor) -> Rows:
            _, pull = vjp(lambda w: block.forward(w, x), block.weights)
            return vmap(lambda v: pull(v)[0])(columns.T)

        rows = vmap(rows_of_one)(problem.x, factor)  # (n, k, *shape)
        flat = [row.flatten(2).flatten(0, 1) for row in rows.values()]
        return block.finish(outputs, torch.stack([(r @ r.T).double() for r in flat]))

    return step


def whole_jacobian(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    """vmap(jacrev) of all outputs, the kernel of all rows, slogdet: the shortest thing that works."""
    block = _Block(problem)

    def step() -> tuple[float, Tensor]:
        outputs, factor = block.factor()
        jacobian = vmap(lambda x: jacrev(lambda w: block.forward(w, x))(block.weights))(problem.x)  # (n, C, *shape)
        flat = [torch.einsum("ncp,nck->nkp", j.flatten(2), factor).flatten(0, 1) for j in jacobian.values()]
        return block.finish(outputs, torch.stack([(r @ r.T).double() for r in flat]))

    return step


class _Block:
    """The block that ntkml draws, with its factor of the output Hessian."""

    def __init__(self, problem: Problem):
        self._own, self._problem = objective(problem).to(problem.x.device), problem
        self.weights = {k: p.detach() for k, p in problem.model.named_parameters() if p.requires_grad}
        partition = self._own.partition
        drawn = partition.draw(1, torch.Generator().manual_seed(1))[0]
        self._block, self._weight = partition.blocks[drawn], 1.0 / float(partition.probabilities[drawn])
        self._share = self._block.columns.shape[-1] / partition.num_columns

    def forward(self, weights: Rows, x: Tensor) -> Tensor:
        return functional_call(self._problem.model, weights, (x.unsqueeze(0),)).squeeze(0)

    @torch.no_grad()
    def factor(self) -> tuple[Tensor, Tensor]:
        """Outputs (n, C) and the block's columns of L, (n, C, k)."""
        outputs = self._problem.model(self._problem.x)
        columns = self._own.likelihood.factor(outputs, self._own.estimator.outputs, self._own.tree)
        return outputs, self._block.select(columns)

    def finish(self, outputs: Tensor, grams: Tensor) -> tuple[float, Tensor]:
        """The estimate and its gradient from the Gram matrices (tensors, b, b) of the rows."""
        log_precision = torch.zeros(len(grams), dtype=torch.float64, device=grams.device, requires_grad=True)
        kernel = torch.einsum("l,lab->ab", (-log_precision).exp(), grams)
        log_det = torch.linalg.slogdet(kernel + torch.eye(len(kernel)).to(kernel)).logabsdet
        squares = torch.stack([w.double().square().sum() for w in self.weights.values()])
        fit = -F.cross_entropy(outputs, self._problem.y, reduction="sum").double()
        value = self._weight * (self._share * fit - 0.5 * log_det) - 0.5 * log_precision.exp() @ squares
        (gradient,) = torch.autograd.grad(-value / len(self._problem.x), log_precision)
        return float(value.detach()), gradient


def one_graph(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    """Prior and eta by one graph from the views to the log-determinant: ntkml's chunk as large as the block, kept alive."""
    from ntkml.rows.block import CapturedRows
    from ntkml.rows.capture import capture
    from ntkml.rows.pulled import rows_by_layer
    from ntkml.structures import structure_named

    own = objective(problem)
    block = _Block(problem)
    structure = own.estimator.structure

    def step() -> tuple[float, Tensor]:
        own.zero_grad()
        generator = torch.Generator().manual_seed(1)
        own.partition.draw(1, generator)
        views = own.augmentation(problem.x, own.augmentation.draw(len(problem.x), generator))
        captured = capture(problem.model, views, problem.case.views, differentiable=True)
        columns = own.likelihood.factor(captured.outputs, own.estimator.outputs, own.tree)
        factor = block._block.select(columns)
        shapes = {name: w.shape for name, w in block.weights.items()}
        prior = own.prior
        if structure == "ntk":
            layers = rows_by_layer(captured, factor, keep_graph=True)
            rows = {
                f"{name}.{key}": r.flatten(0, 1)
                for name, own_rows in layers.items()
                for key, r in own_rows.rows().items()
            }
            kernel = sum((rows[k].double() @ rows[k].double().T) / prior.of(shapes)[k] for k in shapes)
            log_det = torch.logdet(kernel + torch.eye(len(kernel), dtype=kernel.dtype))
        else:
            log_det = structure_named(structure)(CapturedRows(captured, factor, shapes, True)).log_det(prior)
        fit = own.likelihood.log_prob(captured.outputs, problem.y).double().sum()
        value = block._weight * (block._share * fit - 0.5 * log_det) - 0.5 * prior.quadratic_form(
            dict(problem.model.named_parameters())
        )
        (-value / len(problem.x)).backward()
        return float(value.detach()), own.log_prior_precision.grad

    return step
