"""Network partitioning (Mlodozeniec et al. 2023): hyperparameters from subnetworks that never saw what they predict.

Shards D_1 ... D_K of the data, disjoint parts w_1 ... w_K of the weights. Subnetwork k has the trained parts 1 ... k and
the initial values elsewhere; part k is trained on D_1 ... D_k as subnetwork k sees it. The objective

    sum_k log p(D_k | subnetwork k - 1, h)

is out of sample for every term, and its gradient in whatever enters the forward pass (here the augmentation) is direct.

The method is covered by a patent application; this is a research baseline written from the published paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.augmentations import Augmentation
from ntkml.layers.uses import average_views
from ntkml.machine.processes import ALONE, Processes
from ntkml.parameters import called_with, trainable_parameters
from ntkml.protocols.train import TrainProtocol
from ntkml.randomness import generator_for
from ntkml.systems.contract import System, WeightLoss


def shards_of(num_data: int, count: int, seed: int) -> Tensor:
    """The shard of every datum, 0 ... count - 1, sizes as equal as they can be. Shape (N,)."""
    shards = torch.arange(num_data) % count
    return shards[torch.randperm(num_data, generator=generator_for(seed, "shards"))]


def weight_parts(model: nn.Module, count: int, seed: int) -> dict[str, Tensor]:
    """The part of every weight, 0 ... count - 1, drawn independently of everything else; shapes as the weights'."""
    generator = generator_for(seed, "weight-parts")
    return {
        name: torch.randint(count, weight.shape, generator=generator)
        for name, weight in trainable_parameters(model).items()
    }


class PartitionedNetwork(System):
    """``partitioned-K``: K shards and parts. Every batch makes one step of every part, so an epoch is K passes or less."""

    def __init__(self, protocol: TrainProtocol, model: nn.Module, chunk: int | None, processes: Processes = ALONE):
        super().__init__(protocol, model, chunk, processes)
        device = next(model.parameters()).device
        self.shards = shards_of(protocol.num_data, self.number, protocol.seed).to(device)
        self.parts = {name: part.to(device) for name, part in weight_parts(model, self.number, protocol.seed).items()}
        self.defaults = {name: weight.detach().clone() for name, weight in trainable_parameters(model).items()}

    def weight_optimizers(self) -> tuple[str, ...]:
        """One for each part: the moments of a part must not move with the steps of another."""
        return tuple(f"weights-{k}" for k in range(self.number))

    def hyper_parameters(self) -> dict[str, list[nn.Parameter]]:
        return self.learned_views

    def subnetwork(self, last: int, learned: int | None = None) -> dict[str, Tensor]:
        """Weights with the parts 0 ... last as trained and initial values elsewhere; gradients reach part ``learned``."""
        weights = {}
        for name, weight in trainable_parameters(self.objective.model).items():
            part = self.parts[name]
            fixed = torch.where(part <= last, weight.detach(), self.defaults[name])
            weights[name] = fixed if learned is None else torch.where(part == learned, weight, fixed)
        return weights

    def weight_losses(self, x: Tensor, y: Tensor, batch: Tensor, generator: torch.Generator) -> Iterator[WeightLoss]:
        objective, views, shards = self.objective, self._augmentation, self.shards[batch]
        with torch.no_grad():
            inputs = views(self.seen(x[batch], generator), views.draw(len(batch), generator)).unflatten(
                0, (len(batch), -1)
            )
        for k in range(self.number):
            seen = (shards <= k).nonzero().squeeze(1)
            if len(seen) == 0:
                continue
            weights = self.subnetwork(k, k)
            outputs = called_with(objective.model, weights, inputs[seen].flatten(0, 1))
            fit = -objective.likelihood.log_prob(average_views(outputs, views.num_views), y[batch[seen]]).mean()
            seen_in_all = int((self.shards <= k).sum())
            self.spend(len(seen))
            yield fit + objective.prior.energy(weights) / seen_in_all, (f"weights-{k}",)

    def num_losses(self, batch: Tensor) -> int:
        """Those of the parts that learn from the batch: from its first shard's on."""
        return self.number - int(self.shards[batch].min())

    def update(self, x: Tensor, y: Tensor, streams: Mapping[str, torch.Generator]) -> Callable[[], float]:
        return lambda: self.backward(x, y, streams["blocks"])

    def backward(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> float:
        """Add the gradient of -objective / N, estimated from a batch of data of all shards together."""
        objective, views, total = self.objective, self._augmentation, 0.0
        for k in range(self.number):
            members = (self.shards == k).nonzero().squeeze(1)
            size = max(1, min(len(members), self.protocol.batch_size // self.number))
            chosen = members[torch.randperm(len(members), generator=generator)[:size]]
            inputs = views(x[chosen], views.draw(size, generator))
            outputs = average_views(called_with(objective.model, self.subnetwork(k - 1), inputs), views.num_views)
            log_p = objective.likelihood.log_prob(outputs, y[chosen]).mean() * len(members) / len(x)
            (-log_p).backward()
            total += float(log_p.detach())
            self.spend(size)
        return total

    @property
    def _augmentation(self) -> Augmentation:
        views = self.objective.augmentation
        assert views is not None  # the family learns nothing else
        return views

    def state(self) -> dict[str, Any]:
        return super().state() | {"defaults": self.defaults}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        weights = trainable_parameters(self.objective.model)  # a checkpoint is read to the CPU
        self.defaults = {name: value.to(weights[name].device) for name, value in state["defaults"].items()}
