"""Augerino (Benton et al. 2020): an augmentation learned with the weights, kept wide by a regulariser.

    loss = weight loss - reg ||width||,    width = softplus(rho)  (Augerino),  width = eta  (the variant of LILA's paper)

The regulariser is switched off as soon as one width reaches :data:`WIDEST`. Views are drawn from U[-width/2, width/2] in
Augerino and U[-eta, eta] in the variant. Only the augmentation is learned; the prior precision is a fixed weight decay.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ntkml.augmentations import Augmentation
from ntkml.hyperparameters.affine import AffineInvariance
from ntkml.layers.uses import average_views
from ntkml.parameters import trainable_parameters
from ntkml.systems.contract import System, WeightLoss

WIDEST = 10.0

#: Views of an input at test, over which Augerino averages the log-probabilities.
TEST_VIEWS = 4


class SoftplusWidths(AffineInvariance):
    """Half-widths softplus(rho) / 2, rho = 0 at the start. ``eta`` holds rho."""

    @property
    def half_widths(self) -> Tensor:
        return self.widths / 2

    @property
    def widths(self) -> Tensor:
        """softplus(rho), (6,)."""
        return F.softplus(self.eta)


def regulariser(widths: Tensor, strength: float) -> Tensor:
    """-strength ||widths||, or a constant zero once one of them reaches WIDEST. Scalar."""
    if bool((widths.abs() >= WIDEST).any()):  # LILA's half-widths take either sign
        return (widths * 0.0).sum()
    # At widths of zero, where the variant starts, the norm has no slope; a subgradient of zero leaves it to the loss.
    norm = widths.norm() if bool((widths != 0).any()) else (widths * 0.0).sum()
    return -strength * norm


class Augerino(System):
    """Augerino's own settings: one view while training, the mean log-softmax of four at test."""

    strength = 0.1

    def views(self) -> Augmentation:
        return SoftplusWidths(1)

    def hyper_parameters(self) -> dict[str, list[nn.Parameter]]:
        return self.learned_views

    def weight_losses(self, x: Tensor, y: Tensor, batch: Tensor, generator: torch.Generator) -> Iterator[WeightLoss]:
        views, objective = self._augmentation, self.objective
        noise = views.draw(len(batch), generator)
        outputs = average_views(objective.model(views(self.seen(x[batch], generator), noise)), views.num_views)
        fit = -objective.likelihood.log_prob(outputs, y[batch]).mean()
        self.spend(len(batch))
        decay = objective.prior.energy(trainable_parameters(objective.model)) / len(x)
        yield fit + decay + regulariser(self._widths(), self.strength), ("weights", "augmentation")

    def outputs(self, x: Tensor, generator: torch.Generator) -> Tensor:
        views = self._augmentation
        repeated = [self.objective.model(views(x, views.draw(len(x), generator))) for _ in range(TEST_VIEWS)]
        return torch.stack(repeated).log_softmax(-1).mean(0)

    @property
    def _augmentation(self) -> AffineInvariance:
        views = self.objective.augmentation
        assert isinstance(views, AffineInvariance)
        return views

    def _widths(self) -> Tensor:
        views = self._augmentation
        return views.widths if isinstance(views, SoftplusWidths) else views.eta


class LilaAugerino(Augerino):
    """The variant of LILA's paper: S views, mean logits, widths without a softplus from zero on, a weaker regulariser."""

    strength = 0.01

    def views(self) -> Augmentation:
        return AffineInvariance(self.protocol.samples)

    def outputs(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.objective.outputs(x, generator)
