"""What a way of learning hyperparameters is to the training loop: :class:`System`, by itself MAP.

A system says which data the weights see, what their loss is and which parameters it moves, what a hyperparameter update
does, and how the network predicts. Its hyperparameters live in ``objective``, whatever they are learned by: a prior
precision, an observation noise and an augmentation, whose weight loss and outputs all systems share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.augmentations import Augmentation
from ntkml.hyperparameters.affine import AffineInvariance, rotation_eta
from ntkml.machine.processes import ALONE, Processes
from ntkml.objective import MarginalLikelihood
from ntkml.partitions import Partition
from ntkml.protocols.train import TrainProtocol
from ntkml.randomness import generator_for
from ntkml.specs import EXACT
from ntkml.system_specs import parse_system

#: Share of the training data that systems with a validation part hold out.
VALIDATION_SHARE = 0.2

#: Loss and the names of the optimizers that it moves.
WeightLoss = tuple[Tensor, tuple[str, ...]]


class System:
    """MAP with fixed hyperparameters, and the defaults of every other system.

    ``data_passes`` counts gradients and products with the network's Jacobian for N training inputs: one for a backward
    pass of N inputs, one for a row of the Jacobian of N inputs. Views of one input count once.
    """

    def __init__(self, protocol: TrainProtocol, model: nn.Module, chunk: int | None, processes: Processes = ALONE):
        self.protocol, self.processes = protocol, processes
        self.data_passes = 0.0
        self.objective = MarginalLikelihood(
            model,
            self.estimator_name,
            protocol.likelihood,
            protocol.prior_kind,
            protocol.prior_init,
            self.views(),
            chunk,
        )

    @property
    def estimator_name(self) -> str:
        """The objective's; MAP asks for its loss and its outputs alone, so that any name serves."""
        return EXACT

    @property
    def number(self) -> int:
        """The number in the system's name."""
        return parse_system(self.protocol.estimator).count

    def views(self) -> Augmentation | None:
        """The augmentation, where one is learned."""
        return AffineInvariance(self.protocol.samples) if self.protocol.learns_invariance else None

    def hyper_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What is stepped by gradients, under "prior" and "augmentation": one optimizer each."""
        return {}

    @property
    def learned_views(self) -> dict[str, list[nn.Parameter]]:
        """The augmentation's share of :meth:`hyper_parameters`, for systems that learn it; empty without one."""
        views = self.objective.augmentation
        return {} if views is None else {"augmentation": list(views.parameters())}

    def weight_optimizers(self) -> tuple[str, ...]:
        """Names of the optimizers of the weights."""
        return ("weights",)

    def weight_data(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What of the training data the weights are fitted to."""
        return x, y

    def weight_losses(self, x: Tensor, y: Tensor, batch: Tensor, generator: torch.Generator) -> Iterator[WeightLoss]:
        """The losses of one step on ``batch``, indices into the weights' data; each is descended before the next."""
        images, targets = self.drawn(x, y, batch, generator)
        yield self.objective.weight_loss(images, targets, len(x), generator, self.processes), ("weights",)

    @property
    def repeats_itself(self) -> bool:
        """Whether the loss of a :meth:`drawn` batch is the objective's, the same operations whatever is drawn: no views, no
        other processes, and no losses of the system's own."""
        plain = type(self).weight_losses is System.weight_losses
        return plain and self.objective.augmentation is None and self.processes.count == 1

    def drawn(self, x: Tensor, y: Tensor, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The images of one step on ``batch`` as the weights see them, and their targets."""
        self.spend(len(batch))
        return self.seen(x[batch], generator), y[batch]

    def num_losses(self, batch: Tensor) -> int:
        """How many losses :meth:`weight_losses` descends on ``batch``."""
        return 1

    def seen(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A batch as the weights see it: where the protocol flips, one coin mirrors all of it, as in the authors' code."""
        if self.protocol.flip and bool(torch.rand((), generator=generator) < 0.5):
            return images.flip(-1)
        return images

    def update(self, x: Tensor, y: Tensor, streams: Mapping[str, torch.Generator]) -> Callable[[], float]:
        """The plan of one update on all training data: every call adds gradients or makes a fixed-point step.

        Calls return what they estimate, in nats per datum. The plan may draw from "partition" and "blocks" alone.
        """
        raise NotImplementedError(f"{self.protocol.estimator} has no updates")

    def outputs(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """How the network predicts: outputs averaged over views. Shape (n, C)."""
        return self.objective.outputs(x, generator)

    def spend(self, num_inputs: float) -> None:
        """Count gradients or rows of ``num_inputs`` inputs as a share of a data pass."""
        self.data_passes += num_inputs / self.protocol.num_data

    def state(self) -> dict[str, Any]:
        """What the system keeps beside weights, hyperparameters and optimizers: tensors and numbers."""
        return {"data_passes": self.data_passes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.data_passes = state["data_passes"]


class MarginalLikelihoodSystem(System):
    """The paper's: gradients of a stochastic lower bound on the marginal likelihood, estimated from blocks."""

    @property
    def estimator_name(self) -> str:
        return self.protocol.estimator

    def hyper_parameters(self) -> dict[str, list[nn.Parameter]]:
        noise = self.objective.log_observation_noise
        return {
            "prior": [self.objective.log_prior_precision, *([] if noise is None else [noise])],
            **self.learned_views,
        }

    def update(self, x: Tensor, y: Tensor, streams: Mapping[str, torch.Generator]) -> Callable[[], float]:
        """Draw a partition. While only the prior is learned, the rows of one draw of blocks may serve all steps; otherwise
        they change with every step, and each step draws its own blocks."""
        objective, stream, processes = self.objective, streams["blocks"], self.processes
        self._check_alike(objective.resample(x, y, streams["partition"]))
        blocks, learns_views = self.protocol.blocks_per_step, self.protocol.learns_invariance
        if learns_views or self.protocol.draws_afresh:
            passes = 2 if learns_views else 1
            return lambda: self._spent(passes, len(x), objective.backward(x, y, blocks, stream, processes).total)
        backward = objective.cached_backward(x, y, blocks, stream, processes)
        self._spent(1, len(x), torch.zeros(()))
        return lambda: float(backward().total) / len(x)

    def _check_alike(self, partition: Partition) -> None:
        """Raise ValueError where the processes stand at different points: k-means on unlike machines may group otherwise."""
        parts = (part for block in partition.blocks for part in (block.inputs, block.columns))
        self.processes.check_same(parts, "partitions")
        self.processes.check_same(self.objective.parameters(), "hyperparameters")

    def _spent(self, passes: int, num_data: int, total: Tensor) -> float:
        """Rows of the step's mean blocks, ``passes`` times; returns the estimate per datum."""
        partition = self.objective.partition
        assert partition is not None
        pairs = sum(block.num_pairs for block in partition.blocks) / len(partition)
        self.spend(passes * self.protocol.blocks_per_step * pairs)
        return float(total) / num_data


class FixedAugmentation(System):
    """Rotations by U[-angle, angle] that stay as they are; the angle in degrees is the number in the name."""

    def views(self) -> Augmentation:
        eta = rotation_eta(self.number * torch.pi / 180, torch.get_default_dtype())
        return AffineInvariance(self.protocol.samples, eta)


def split_validation(num_data: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation part, which depend on the seed alone."""
    order = torch.randperm(num_data, generator=generator_for(seed, "validation"))
    held_out = max(1, round(VALIDATION_SHARE * num_data))
    return order[held_out:], order[:held_out]
