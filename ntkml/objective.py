"""The marginal likelihood as an objective: ``backward`` puts gradients into the ``.grad`` of hyperparameters.

Gradients in the prior precision and the observation noise need only the linear algebra of one block. Anything that enters
the forward pass (augmentation, :class:`~ntkml.Hyperparameter` of the network) takes a second pass over the block,
in chunks (:mod:`ntkml.two_pass`). The noise of the augmentation is drawn once per estimate and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.arguments import check_generator, check_size
from ntkml.augmentations import Augmentation
from ntkml.blockwise_model import BlockwiseModel
from ntkml.dichotomies import NestedDichotomy
from ntkml.evidence import LogMarginalLikelihood, blocks_of_batch, check_data
from ntkml.grouping import partition_for, tree_for
from ntkml.likelihoods import Likelihood
from ntkml.machine.full_precision import full_precision
from ntkml.machine.processes import ALONE, Processes
from ntkml.parameters import trainable_parameters
from ntkml.partitions import Partition
from ntkml.rows.model_contract import check_modes
from ntkml.rows.plain_passes import outputs_of_one
from ntkml.specs import EstimatorSpec, is_certified, resolve_estimator, within_batch
from ntkml.two_pass import BlockData


class MarginalLikelihood(BlockwiseModel):
    """-log q(D|h) / N as a loss of the hyperparameters h, estimated from blocks of the training data.

    Its ``parameters()`` are the hyperparameters: the log prior precisions, the log observation noise of a likelihood that has
    one, those of the augmentation and every :class:`Hyperparameter` of the network. Give them to any torch optimiser; the
    network's weights are not among them. They are created on the weights' device, to which the augmentation is moved.
    ``state_dict()`` includes the class tree of ``tree`` estimators: with it and the weights, another objective makes the same
    estimates on a partition that :meth:`resample` draws from the same generator. It does not include the partition, nor the
    chunk size, which depends on the machine and changes rounding alone.

    Args:
        model: the network, for one thread at a time; see :func:`ntkml.log_marginal_likelihood`.
        estimator: a name such as ``"ntk-100-tree"``.
        likelihood: ``"categorical"``, ``"bernoulli"``, ``"gaussian"`` (whose noise is learned, initially 1), or an object: the
            noise of ``Gaussian(0.1)``, or of any :class:`ntkml.likelihoods.LearnedNoise`, is learned, starting at 0.1.
        prior: ``"scalar"``, ``"layerwise"`` (one precision per parameter tensor) or ``"diagonal"``.
        prior_precision: the initial precision: one number, or as many as ``prior`` has.
        augmentation: random views that the network function averages over, or None.
        chunk: inputs per chunk; None measures how many fit (:func:`ntkml.rows.chunking.automatic_chunk`). It is halved where
            memory runs out.

    Raises:
        ValueError: an unknown name, a precision that is not positive, or an argument that is not what it should be.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: str | EstimatorSpec,
        likelihood: str | Likelihood = "categorical",
        prior: str = "layerwise",
        prior_precision: float | Tensor = 1.0,
        augmentation: Augmentation | None = None,
        chunk: int | None = None,
    ):
        super().__init__(model, estimator, likelihood, prior, prior_precision, augmentation, chunk)
        self.partition: Partition | None = None

    def get_extra_state(self) -> dict[str, Any]:
        return {"tree": None if self.tree is None else self.tree.splits}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        splits = state["tree"]
        self.tree = (
            None if splits is None else NestedDichotomy(tuple((tuple(left), tuple(right)) for left, right in splits))
        )
        if self.tree is None and self.estimator.outputs == "tree":
            self.partition = None  # the next one makes the tree

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", {"tree": None})  # older states lack it
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @full_precision()
    def resample(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Partition:
        """Draw a new partition of all training data; the paper does so every epoch.

        Its blocks are drawn with equal probabilities. For importance sampling, which helps with grouped blocks, replace it by one
        with other probabilities: ``objective.partition = objective.resample(x, y).weighted(weights)``.
        """
        self.partition = self._partition_of(x, y, generator, self.estimator)
        return self.partition

    def _partition_of(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None, estimator: EstimatorSpec
    ) -> Partition:
        """A new partition of these data; the first one of all makes the tree, for ``tree`` rows alone."""
        check_data(x, y)
        check_generator(generator)
        check_modes(self.model)
        self._row_plan(x)  # first of all: it says what is wrong with a network
        num_outputs = outputs_of_one(self.model, x).shape[1]
        spec = resolve_estimator(estimator, len(x), num_outputs, self._likelihood.softmax)
        if self.tree is None and spec.outputs == "tree":
            self.tree = tree_for(self.model, num_outputs)  # fixed from the first partition on
        if self.tree is not None and self.tree.num_classes != num_outputs:
            raise ValueError(
                f"the tree of this objective is over {self.tree.num_classes} classes, the network has {num_outputs} outputs"
            )
        return self._as_planned(x, lambda plan: partition_for(spec, self.model, x, y, self.likelihood, generator, plan))

    @torch.enable_grad()
    @full_precision()
    def backward(
        self,
        x: Tensor,
        y: Tensor,
        blocks: int | None = 1,
        generator: torch.Generator | None = None,
        processes: Processes = ALONE,
        num_data: int | None = None,
    ) -> LogMarginalLikelihood:
        """Estimate log q(D|h) and add the gradient of -log q(D|h) / N to the ``.grad`` of every hyperparameter.

        Args:
            x, y: all N training data, of which only the inputs of the drawn blocks are read; or a random batch of them.
            blocks: how many blocks to draw from the partition (unbiased); None sums all of them.
            generator: for the draw, the augmentation noise, and the partition where :meth:`resample` was not called.
            processes: those that share the drawn blocks, called with the same arguments; all get the whole estimate and gradient.
            num_data: N where x and y are a batch, for example of a ``DataLoader``: a new partition of the batch is made, ``N`` in
                the estimator's name is the batch, and the terms of its n data count N / n times. A batch that is smaller than a
                block is one block, and of more ``blocks`` than it has all are taken. The expectation over batches is a lower
                bound wherever ``certified`` says so (docs/mathematics.md). None: x and y are all data.

        Returns:
            The estimate, without a graph, in nats summed over the data.

        Raises:
            ValueError: a factorisation failed, a precision is not positive and finite, or not even one input of a block fits
                into memory; every ``.grad`` stays as it was.
        """
        partition, num_data, blocks = self._to_draw_from(x, y, blocks, generator, num_data)
        drawn = self._drawn(x, y, partition, num_data, blocks, generator, processes)
        with processes.summed_gradients(self.parameters()):
            terms = ((weight, *self._add_gradients(data, weight, num_data)) for data, weight in drawn)
            return self._assemble(num_data, len(partition), terms, processes)

    @full_precision()
    def estimate(
        self,
        x: Tensor,
        y: Tensor,
        blocks: int | None = None,
        generator: torch.Generator | None = None,
        num_data: int | None = None,
    ) -> LogMarginalLikelihood:
        """The estimate of :meth:`backward` without any gradient; over all blocks by default."""
        partition, num_data, blocks = self._to_draw_from(x, y, blocks, generator, num_data)
        drawn = self._drawn(x, y, partition, num_data, blocks, generator, ALONE)
        with torch.no_grad():
            terms = ((weight, *self._value(data)) for data, weight in drawn)
            return self._assemble(num_data, len(partition), terms, ALONE)

    @torch.enable_grad()
    @full_precision()
    def cached_backward(
        self,
        x: Tensor,
        y: Tensor,
        blocks: int | None = 1,
        generator: torch.Generator | None = None,
        processes: Processes = ALONE,
        num_data: int | None = None,
    ) -> Callable[[], LogMarginalLikelihood]:
        """Draw blocks once and return a function that does what :meth:`backward` does on them, by linear algebra alone.

        For several steps of the prior precision and the observation noise on the same blocks. Their Jacobian rows are computed
        now: do not use the result once the weights have changed.

        Raises:
            ValueError: a hyperparameter enters the forward pass, so that the rows change with every step.
        """
        if self._forward_hyperparameters:
            raise ValueError("cached steps are for the prior and the observation noise alone: call backward instead")
        partition, num_all, blocks = self._to_draw_from(x, y, blocks, generator, num_data)
        drawn = self._drawn(x, y, partition, num_all, blocks, generator, processes)
        kept = [(data, self._kept(data), weight) for data, weight in drawn]
        squares = self.prior.squares(trainable_parameters(self.model))

        @torch.enable_grad()
        @full_precision()
        def backward() -> LogMarginalLikelihood:
            terms = ((weight, *self._terms(data, first)) for data, first, weight in kept)
            with processes.summed_gradients(self.parameters()):
                return self._assemble(num_all, len(partition), terms, processes, squares)

        return backward

    def _to_draw_from(
        self, x: Tensor, y: Tensor, blocks: int | None, generator: torch.Generator | None, num_data: int | None
    ) -> tuple[Partition, int, int | None]:
        """A partition, the standing one of all data or one of this batch, N, and how many blocks to draw."""
        self._check_unchanged(x, y)
        check_generator(generator)
        if num_data is not None:
            check_size(num_data, len(x))
            partition = self._partition_of(x, y, generator, within_batch(self.estimator, len(x)))
            return partition, num_data, blocks_of_batch(blocks, partition)
        if self.partition is None or self.partition.num_inputs != len(x):
            self.resample(x, y, generator)
        assert self.partition is not None
        return self.partition, len(x), blocks

    def _drawn(
        self,
        x: Tensor,
        y: Tensor,
        partition: Partition,
        num_data: int,
        blocks: int | None,
        generator: torch.Generator | None,
        processes: Processes,
    ) -> Iterator[tuple[BlockData, float]]:
        """This process's blocks of those drawn, their data and views, with the weights N / (n q_m) of their terms."""
        scale = num_data / len(x)
        drawn = range(len(partition)) if blocks is None else partition.draw(blocks, generator)
        for index, m in enumerate(drawn):
            block = partition.blocks[m]
            noise = self._draw(len(block.inputs), generator)  # of every block, or the processes' streams would part
            if not processes.takes(index) and self.chunk is not None:
                continue
            share, block = partition.share(block), block.to(x.device)
            data = self._data(block, x[block.inputs], y[block.inputs], share, noise)
            if self.chunk is None:  # measured on the first block of all, for all processes
                self.chunk = self._measured_chunk(data)
            if processes.takes(index):
                yield data, scale * partition.weight(m, blocks)

    def _assemble(
        self,
        num_data: int,
        num_blocks: int,
        terms: Iterable[tuple[float, Tensor, Tensor]],
        processes: Processes,
        squares: Tensor | None = None,
    ) -> LogMarginalLikelihood:
        """The estimate from (weight, rho, log-determinant) of blocks, one after the other; adds its gradients.

        That of the weights' prior comes with the first block's, in one backward pass. ``squares``: see
        :meth:`PriorPrecision.squares`, None to compute them.
        """
        self._check_exponentials()
        prior = self.prior
        squares = prior.squares(trainable_parameters(self.model)) if squares is None else squares
        log_prior = -0.5 * (prior.values.double() @ squares)
        rho, log_det = (torch.zeros((), dtype=torch.float64, device="cpu") for _ in range(2))
        waiting: Tensor | None = log_prior / processes.count
        for weight, block_rho, block_log_det in terms:
            value = weight * (block_rho - 0.5 * block_log_det)
            self._descend(value if waiting is None else value + waiting, num_data)
            waiting = None
            rho, log_det = rho + weight * block_rho.detach(), log_det + weight * block_log_det.detach()
        if waiting is not None:  # all blocks are other processes'
            self._descend(waiting, num_data)
        rho, log_det = processes.total(torch.stack([rho, log_det]))
        certified = is_certified(self.estimator, self._likelihood.softmax)
        return LogMarginalLikelihood(rho, log_prior.detach(), log_det, certified, num_blocks)

    def _descend(self, value: Tensor, num_data: int) -> None:
        """Add the gradient of -value / N to the ``.grad`` of prior and noise; that of all else comes from the second pass."""
        learned = [
            parameter
            for parameter in (self.log_prior_precision, self.log_observation_noise)
            if parameter is not None and parameter.requires_grad
        ]
        if learned and value.requires_grad:
            (-value / num_data).backward(inputs=learned)
