"""Training of weights by maximum a posteriori at fixed hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntkml.hyperparameters.affine import affine_views, draw_noise
from ntkml.layers.uses import average_views
from ntkml.likelihoods import Likelihood
from ntkml.machine.full_precision import full_precision
from ntkml.parameters import trainable_parameters
from ntkml.priors import PriorPrecision
from ntkml.protocols.bound_grid import MapTraining
from ntkml.registry import unknown_name

_OPTIMIZERS = {"adam": torch.optim.Adam}


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean weight loss (nats per datum) and the accuracy of the augmented network on its training batches."""

    epoch: int
    loss: float
    accuracy: float


def train_map(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    likelihood: Likelihood,
    settings: MapTraining,
    eta: Tensor | None,
    generator: torch.Generator,
) -> Iterator[EpochRecord]:
    """Minimise (-log p(D|w) + 1/2 w^T P0 w) / N in place, one record per epoch.

    Args:
        inputs, targets: the N training data.
        eta: (6,) fixed affine invariance the outputs are averaged over with fresh noise every batch, or None.
        generator: order of the batches and augmentation noise.

    Raises:
        ValueError: unknown optimizer, or weights that became NaN or infinite.
    """
    if settings.optimizer not in _OPTIMIZERS:
        raise ValueError(unknown_name("optimizer", settings.optimizer, list(_OPTIMIZERS)))
    num_data = len(inputs)
    parameters = trainable_parameters(model)
    prior = PriorPrecision(torch.tensor([settings.prior_precision], dtype=torch.float64), "scalar")
    optimizer = _OPTIMIZERS[settings.optimizer](parameters.values(), lr=settings.lr)
    num_steps = settings.epochs * -(-num_data // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=settings.lr_min)
    for epoch in range(settings.epochs):
        total_loss, correct = 0.0, 0
        for batch in torch.randperm(num_data, generator=generator).split(settings.batch_size):
            x, y = inputs[batch], targets[batch]
            with full_precision():
                if eta is not None:
                    x = affine_views(x, eta, draw_noise(len(batch), settings.samples, generator))
                outputs = average_views(model(x), 1 if eta is None else settings.samples)
                log_joint = likelihood.log_prob(outputs, y).mean() - prior.energy(parameters) / num_data
                optimizer.zero_grad()
                (-log_joint).backward()
            optimizer.step()
            schedule.step()
            total_loss -= log_joint.item() * len(batch)
            correct += int((outputs.argmax(-1) == y).sum())
        if not torch.isfinite(torch.tensor(total_loss)):
            raise ValueError(
                f"training diverged in epoch {epoch + 1} at learning rate {settings.lr:g} and prior precision "
                f"{settings.prior_precision:g}: lower one of them"
            )
        yield EpochRecord(epoch, total_loss / num_data, correct / num_data)
