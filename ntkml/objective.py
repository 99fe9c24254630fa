"""The marginal likelihood as an objective: ``backward`` puts gradients into the ``.grad`` of hyperparameters.

Gradients in the prior precision and the observation noise need only the linear algebra of one block. Anything that enters
the forward pass (augmentation, :class:`~ntkml.capture.Hyperparameter` of the network) takes a second pass over the block,
in chunks (:mod:`ntkml.two_pass`). The noise of the augmentation is drawn once per estimate and replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ntkml.capture import Hyperparameter, average_views, trainable_parameters
from ntkml.chunking import automatic_chunk
from ntkml.dichotomies import NestedDichotomy
from ntkml.evidence import LogMarginalLikelihood, check_data, partition_for, tree_for
from ntkml.exact_rows import RowPlan
from ntkml.likelihoods import Gaussian, Likelihood, as_likelihood
from ntkml.memory import BlockMemoryError, is_out_of_memory
from ntkml.model_contract import check_model
from ntkml.partitions import Block, Partition
from ntkml.priors import PriorPrecision, as_prior
from ntkml.specs import is_certified, parse_estimator, resolve_estimator
from ntkml.two_pass import BlockData, FirstPass, TwoPass

#: Network inputs per forward pass of plain outputs on a CPU: activations of a few hundred images stay in its caches.
FORWARD_INPUTS = 500

_LOG = logging.getLogger("ntkml")
Result = TypeVar("Result")

PRIOR_SIZES = ("scalar", "layerwise", "diagonal")


class Augmentation(Protocol):
    """Random views of an input; its parameters are hyperparameters. An nn.Module, such as AffineInvariance."""

    num_views: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is learned."""

    def draw(self, num_inputs: int, generator: torch.Generator | None) -> Tensor:
        """Noise of ``num_inputs`` inputs, first dimension n."""

    def __call__(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Views (n * S, ...) of inputs (n, ...), differentiable in the parameters."""


class MarginalLikelihood(nn.Module):
    """-log q(D|h) / N as a loss of the hyperparameters h, estimated from blocks of the training data.

    Its ``parameters()`` are the hyperparameters: the log prior precisions, the log observation noise of a Gaussian
    likelihood, those of the augmentation and every :class:`Hyperparameter` of the network. Give them to any torch
    optimiser; the network's weights are not among them.

    Args:
        model: the network; see :func:`ntkml.log_marginal_likelihood`.
        estimator: a name such as ``"ntk-100-tree"``.
        likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"`` (whose noise is learned, initially 1).
        prior: ``"scalar"``, ``"layerwise"`` (one precision per parameter tensor) or ``"diagonal"``.
        prior_precision: the initial precision.
        augmentation: random views that the network function averages over, or None.
        chunk: inputs per captured chunk; None measures how many fit (:func:`ntkml.chunking.automatic_chunk`). It is halved
            where memory runs out.

    Raises:
        ValueError: an unknown name, or a precision that is not positive.
    """

    augmentation: Augmentation | None

    def __init__(
        self,
        model: nn.Module,
        estimator: str,
        likelihood: str = "categorical",
        prior: str = "layerwise",
        prior_precision: float = 1.0,
        augmentation: Augmentation | None = None,
        chunk: int | None = None,
    ):
        super().__init__()
        if prior not in PRIOR_SIZES:
            raise ValueError(f"unknown prior {prior!r}; known: {', '.join(PRIOR_SIZES)}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be a positive number of inputs, got {chunk}")
        self._model = (model,)  # in a tuple, so that the weights do not become parameters of the objective
        parameters = trainable_parameters(model)
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        sizes = (1, len(parameters), sum(parameter.numel() for parameter in parameters.values()))
        initial = torch.full((sizes[PRIOR_SIZES.index(prior)],), float(prior_precision), dtype=torch.float64)
        as_prior(PriorPrecision(initial, prior), self._shapes)
        self.estimator = parse_estimator(estimator)
        self.prior_kind = prior
        self.log_prior_precision = nn.Parameter(initial.log())
        self._likelihood = as_likelihood(likelihood)
        gaussian = isinstance(self._likelihood, Gaussian)
        self.log_observation_noise = nn.Parameter(torch.zeros((), dtype=torch.float64)) if gaussian else None
        self.augmentation = augmentation
        self.in_network = nn.ParameterList(p for p in model.parameters() if isinstance(p, Hyperparameter))
        self.chunk = chunk
        self.partition: Partition | None = None
        #: Over the classes, for ``tree`` rows: made by the first partition and fixed from there on.
        self.tree: NestedDichotomy | None = None
        self._plan: RowPlan | None = None

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    @property
    def prior(self) -> PriorPrecision:
        """The current prior precision, differentiable in ``log_prior_precision``."""
        return PriorPrecision(self.log_prior_precision.exp(), self.prior_kind)

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood with its current observation noise."""
        noise = self.log_observation_noise
        return self._likelihood if noise is None else Gaussian(noise.exp())

    def outputs(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f(x), averaged over freshly drawn views; differentiable in the weights only. Shape (n, C)."""
        with torch.no_grad():
            views = self._views(x, self._draw(len(x), generator))
        parts = views.split(FORWARD_INPUTS) if views.device.type == "cpu" else (views,)
        # Views are ours; without them a network that works on its input in place must not reach the caller's data.
        own = parts if self.augmentation is not None else [part.clone() for part in parts]
        return average_views(torch.cat([self.model(part) for part in own]), self._num_views)

    def weight_loss(self, x: Tensor, y: Tensor, num_data: int, generator: torch.Generator | None = None) -> Tensor:
        """The weights' loss on a batch, -mean log p(y|x, w) + 1/2 w^T P0 w / N, hyperparameters fixed. Scalar."""
        weights = trainable_parameters(self.model)
        precision = self.prior.of(self._shapes)
        square = torch.stack([(precision[k].detach().to(w) * w.reshape(-1).square()).sum() for k, w in weights.items()])
        return 0.5 * square.sum() / num_data - self.likelihood.log_prob(self.outputs(x, generator), y).mean()

    def resample(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Partition:
        """Draw a new partition of all training data; the paper does so every epoch."""
        check_data(x, y)
        if self.partition is None:
            self._plan = check_model(self.model, x)
            self.tree = self.tree or tree_for(self.model)
        with torch.no_grad():
            self._num_outputs = self.model(x[:1].clone()).shape[1]  # some networks work on their input in place
        self._spec = resolve_estimator(self.estimator, len(x), self._num_outputs, self._likelihood.softmax)
        self.partition = partition_for(self._spec, self.model, x, y, self.likelihood, generator, self._plan)
        return self.partition

    def backward(
        self, x: Tensor, y: Tensor, blocks: int | None = 1, generator: torch.Generator | None = None
    ) -> LogMarginalLikelihood:
        """Estimate log q(D|h) and add the gradient of -log q(D|h) / N to the ``.grad`` of every hyperparameter.

        Args:
            x, y: all N training data; only the inputs of the drawn blocks are touched.
            blocks: how many blocks to draw from the partition (unbiased); None sums all of them.
            generator: of the draw, the augmentation noise, and the partition where :meth:`resample` was not called.

        Returns:
            The estimate, without a graph, in nats summed over the data.

        Raises:
            ValueError: a factorisation failed, or not even one input of a block fits into memory.
        """
        drawn = self._drawn(x, y, blocks, generator)
        return self._assemble(len(x), (self._add_gradients(data, weight, len(x)) for data, weight in drawn))

    def estimate(
        self, x: Tensor, y: Tensor, blocks: int | None = None, generator: torch.Generator | None = None
    ) -> LogMarginalLikelihood:
        """What :meth:`backward` returns, without computing any gradient; by default of all blocks."""
        drawn = self._drawn(x, y, blocks, generator)
        with torch.no_grad():
            terms = ((weight, *self._in_memory(data, partial(self._value, data))) for data, weight in drawn)
            return self._assemble(len(x), terms)

    def cached_backward(
        self, x: Tensor, y: Tensor, blocks: int | None = 1, generator: torch.Generator | None = None
    ) -> Callable[[], LogMarginalLikelihood]:
        """Draw blocks once; every call of the result does what :meth:`backward` does on them, by linear algebra alone.

        For several steps of the prior precision and the observation noise on the same blocks. The rows are those of this
        moment: the result must not be used any more once the weights have changed.

        Raises:
            ValueError: a hyperparameter enters the forward pass, so that the rows change with every step.
        """
        if self._forward_hyperparameters:
            raise ValueError("cached steps are for the prior and the observation noise alone: call backward instead")
        kept = [(data, self._first(data), weight) for data, weight in self._drawn(x, y, blocks, generator)]

        def backward() -> LogMarginalLikelihood:
            terms = ((self._terms(data, first), weight) for data, first, weight in kept)
            return self._assemble(len(x), (self._descend(*own, weight, len(x)) for own, weight in terms))

        return backward

    def _drawn(
        self, x: Tensor, y: Tensor, blocks: int | None, generator: torch.Generator | None
    ) -> Iterator[tuple[BlockData, float]]:
        """Blocks of the partition, their data and views, with the weights 1/q_m of their terms."""
        if self.partition is None or self.partition.num_inputs != len(x):
            self.resample(x, y, generator)
        partition = self.partition
        assert partition is not None
        if blocks is None:
            chosen = [(block, 1.0) for block in partition.blocks]
        else:
            drawn = partition.draw(blocks, generator)
            chosen = [(partition.blocks[m], 1.0 / (float(partition.probabilities[m]) * blocks)) for m in drawn]
        for block, weight in chosen:
            share = block.columns.shape[-1] / partition.num_columns
            yield self._data(block, x[block.inputs], y[block.inputs], share, generator), weight

    def _data(
        self, block: Block, inputs: Tensor, targets: Tensor, share: float, generator: torch.Generator | None
    ) -> BlockData:
        noise = self._draw(len(inputs), generator)

        def views(part: slice) -> Tensor:
            return self._views(inputs[part], None if noise is None else noise[part])

        return BlockData(block, inputs, targets, views, self._num_views, share)

    def _assemble(self, num_data: int, terms: Iterable[tuple[float, Tensor, Tensor]]) -> LogMarginalLikelihood:
        """The estimate from (weight, rho, log-determinant) of blocks; adds the gradient of the weights' prior."""
        log_prior = -0.5 * self.prior.quadratic_form(trainable_parameters(self.model))
        if log_prior.requires_grad:
            (-log_prior / num_data).backward()
        rho, log_det = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for weight, block_rho, block_log_det in terms:
            rho, log_det = rho + weight * block_rho, log_det + weight * block_log_det
        assert self.partition is not None
        certified = is_certified(self._spec, self._num_outputs, self._likelihood.softmax)
        return LogMarginalLikelihood(rho, log_prior.detach(), log_det, certified, len(self.partition))

    def _first(self, data: BlockData) -> FirstPass:
        return self._in_memory(data, lambda passes: passes.first(data, adjoint=False))

    def _value(self, data: BlockData, passes: TwoPass) -> tuple[Tensor, Tensor]:
        return self._terms(data, passes.first(data, adjoint=False))

    def _add_gradients(self, data: BlockData, weight: float, num_data: int) -> tuple[float, Tensor, Tensor]:
        """Gradients of -weight (rho - 1/2 log-determinant) / N of one block; the rows of one are alive at a time."""
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
        return self._descend(*terms, weight, num_data)

    def _terms(self, data: BlockData, first: FirstPass) -> tuple[Tensor, Tensor]:
        """rho and log-determinant of one block, differentiable in prior and noise."""
        log_det = first.structure.log_det(self._scaled_prior)
        return data.share * self.likelihood.log_prob(first.outputs, data.targets).double().sum(), log_det

    def _descend(self, rho: Tensor, log_det: Tensor, weight: float, num_data: int) -> tuple[float, Tensor, Tensor]:
        """Add the gradient of -weight (rho - 1/2 log-determinant) / N in prior and noise."""
        loss = -weight / num_data * (rho - 0.5 * log_det)
        if loss.requires_grad:  # not where prior and noise are frozen
            loss.backward()
        return weight, rho.detach(), log_det.detach()

    def _in_memory(self, data: BlockData, compute: Callable[[TwoPass], Result]) -> Result:
        """``compute`` in chunks; where memory runs out the chunk is halved, never the block.

        Raises:
            BlockMemoryError: it runs out with one input at a time.
        """
        while True:
            passes = self._passes(data)
            try:
                return compute(passes)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                held = min(passes.chunk, len(data.inputs))
                if held == 1:
                    raise BlockMemoryError(
                        f"out of memory: a block of {data.block.num_pairs} rows ({self.estimator}) does not fit, one input "
                        "at a time: choose an estimator with fewer inputs or outputs in a block, or kfac"
                    ) from error
            self.chunk = held // 2  # outside of the handler, which would keep what failed alive
            _LOG.warning("out of memory with chunks of %d inputs: continuing with %d", held, self.chunk)

    def _passes(self, data: BlockData) -> TwoPass:
        self._plan = check_model(self.model, data.inputs) if self._plan is None else self._plan
        if self.chunk is None:
            with torch.no_grad():
                example = data.views(slice(0, 1))
            self.chunk = automatic_chunk(self.model, self._plan, example, data.block.columns.shape[-1])
        return TwoPass(
            model=self.model,
            plan=self._plan,
            shapes=self._shapes,
            structure=self.estimator.structure,
            likelihood=self._likelihood_fixed,
            factor=lambda outputs: self._likelihood.factor(outputs, self.estimator.outputs, self.tree),
            chunk=self.chunk,
        )

    @property
    def _scaled_prior(self) -> PriorPrecision:
        """Lambda = L L^T / sigma^2 enters K only as a product with P0^-1, so the noise scales the prior precision."""
        return self.prior.scaled(self.likelihood.noise_variance)

    @property
    def _forward_hyperparameters(self) -> list[nn.Parameter]:
        """What enters the forward pass: the second pass is for these."""
        augmentation = [] if self.augmentation is None else list(self.augmentation.parameters())
        return [parameter for parameter in (*augmentation, *self.in_network) if parameter.requires_grad]

    @property
    def _likelihood_fixed(self) -> Likelihood:
        """The likelihood with its noise as a number: its own gradient is taken with the value."""
        noise = self.log_observation_noise
        return self._likelihood if noise is None else Gaussian(noise.detach().exp())

    @property
    def _num_views(self) -> int:
        return 1 if self.augmentation is None else self.augmentation.num_views

    def _draw(self, num_inputs: int, generator: torch.Generator | None) -> Tensor | None:
        return None if self.augmentation is None else self.augmentation.draw(num_inputs, generator)

    def _views(self, x: Tensor, noise: Tensor | None) -> Tensor:
        return x if self.augmentation is None or noise is None else self.augmentation(x, noise)
