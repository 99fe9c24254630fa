"""HOAG for networks: the hypergradient of the validation loss in the prior precisions and the augmentation.

The weights are those of the training loop, whatever tolerance its epochs reached; the Hessian of the inner problem is the
generalised Gauss-Newton matrix plus P0, which is positive definite where the Hessian of a network need not be (for
linear models the two are the same). q starts at the one of the last step. Hyperparameters take the loop's Adam steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from ntkml.machine.processes import ALONE, Processes
from ntkml.parameters import parameter_shapes
from ntkml.protocols.train import TrainProtocol
from ntkml.systems.contract import System, split_validation
from ntkml.systems.hoag import SCHEDULES, conjugate_gradients
from ntkml.systems.products import flattened, gauss_newton_product, outputs_of

#: Conjugate gradients stop here at the latest; the next step goes on from what they reached.
MOST_PRODUCTS = 30


class NetworkHoag(System):
    """Hypergradients from a training and a validation part; the schedule stands in the name."""

    def __init__(self, protocol: TrainProtocol, model: nn.Module, chunk: int | None, processes: Processes = ALONE):
        super().__init__(protocol, model, chunk, processes)
        self.train, self.validation = split_validation(protocol.num_data, protocol.seed)
        self.schedule = SCHEDULES[protocol.estimator.removeprefix("hoag").removeprefix("-") or "exponential"]
        self.start: Tensor | None = None
        self.steps = 0

    def hyper_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"prior": [self.objective.log_prior_precision], **self.learned_views}

    def weight_data(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x[self.train], y[self.train]

    def update(self, x: Tensor, y: Tensor, streams: Mapping[str, torch.Generator]) -> Callable[[], float]:
        train = x[self.train], y[self.train]
        validation = x[self.validation], y[self.validation]
        return lambda: self.backward(train, validation, streams["blocks"])

    def backward(
        self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], generator: torch.Generator | None
    ) -> float:
        """Add p / n to the gradients, n validation data; returns their mean log likelihood."""
        self.steps += 1
        weights, count = flattened(self.objective.model), len(validation[0])
        inputs = self._views(train[0], generator)  # drawn once: the curvature is that of the same views
        ours, theirs = self._loss(inputs, train[1]), self._loss(self._views(validation[0], generator), validation[1])
        outer_weights, loss = torch.func.grad_and_value(theirs)(weights)
        precision = self._precision()
        curvature = gauss_newton_product(self._outputs(inputs.detach()), weights, self.objective.likelihood)

        def product(vector: Tensor) -> Tensor:
            self.spend(2 * len(train[0]))
            return curvature(vector) + precision.detach().to(vector) * vector

        tolerance = self.schedule(self.steps)
        q = self.start = conjugate_gradients(product, outer_weights, tolerance, self.start, MOST_PRODUCTS)
        # <q, d h / d w> is the slope of the inner objective along q; its prior part is <q, P0 w>.
        mixed = (q.double() * precision * weights.double()).sum()
        if self.objective.augmentation is not None:
            mixed = mixed + jvp(ours, (weights,), (q,))[1] - theirs(weights)
        (-mixed / count).backward()
        self.spend(3 * len(train[0]) + 2 * count)
        return -float(loss.detach()) / count

    def _precision(self) -> Tensor:
        """The diagonal of P0, (P,), differentiable in the log prior precisions."""
        return self.objective.prior.diagonal(parameter_shapes(self.objective.model))

    def _views(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        views = self.objective.augmentation
        return x if views is None else views(x, views.draw(len(x), generator))

    def _num_views(self) -> int:
        return 1 if self.objective.augmentation is None else self.objective.augmentation.num_views

    def _outputs(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """w -> outputs on ``inputs``, views of the data. (P,) -> (n, C)."""
        return outputs_of(self.objective.model, inputs, self._num_views())

    def _loss(self, inputs: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """w -> -log p(y|x, w), summed, on views that are differentiable in the augmentation."""
        outputs = self._outputs(inputs)
        return lambda weights: -self.objective.likelihood.log_prob(outputs(weights), y).sum()

    def state(self) -> dict[str, Any]:
        return super().state() | {"start": self.start, "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.start, self.steps = state["start"], state["steps"]
