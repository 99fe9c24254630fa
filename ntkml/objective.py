"""The marginal likelihood as an objective: ``backward`` puts gradients into the ``.grad`` of hyperparameters.

Gradients in the prior precision and the observation noise need only the linear algebra of one block. Anything that enters
the forward pass (augmentation, :class:`~ntkml.capture.Hyperparameter` of the network) takes a second pass over the block:

    pass 1, without a graph, chunk by chunk: rows -> log-determinant and its adjoint V,
    pass 2, chunk by chunk with a graph: d/dh [ rho(chunk) - 1/2 <V, R(chunk)> ], V fixed, R = L(f)^T J.

Only one chunk's graph is alive at a time; beyond it a block costs the rows that a structure keeps (none for kfac).
The noise of the augmentation is drawn once per estimate and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ntkml.capture import Hyperparameter, average_views, capture, trainable_parameters
from ntkml.dichotomies import NestedDichotomy
from ntkml.evidence import LogMarginalLikelihood, check_data, partition_for, tree_for
from ntkml.exact_rows import RowPlan
from ntkml.layers.layer_rows import LayerRows
from ntkml.likelihoods import Gaussian, Likelihood, as_likelihood
from ntkml.model_contract import check_model
from ntkml.partitions import Block, Partition
from ntkml.priors import PriorPrecision, as_prior
from ntkml.rows import ChunkedRows, rows_by_layer
from ntkml.specs import is_certified, parse_estimator, resolve_estimator
from ntkml.structures import Structure, structure_named

#: Network inputs (views included) per chunk where the caller names no size.
CHUNK_INPUTS = 1024

#: Network inputs per forward pass of plain outputs on a CPU: activations of a few hundred images stay in its caches.
FORWARD_INPUTS = 500

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


@dataclass(frozen=True)
class FirstPass:
    """One block after the pass without a graph: its data, outputs (n, C), structure and share of the log likelihood."""

    inputs: Tensor
    targets: Tensor
    noise: Tensor | None
    outputs: Tensor
    structure: Structure
    share: float


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
        chunk: inputs per chunk; None takes about a thousand network inputs, views counted.

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
        return average_views(torch.cat([self.model(part) for part in parts]), self._num_views)

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
            self._num_outputs = self.model(x[:1]).shape[1]
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
        """
        return self._assemble(len(x), self._backward_blocks(x, y, blocks, generator))

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
        kept = [
            (self._first_pass(x, y, block, generator), weight) for block, weight in self._drawn(x, y, blocks, generator)
        ]

        def backward() -> LogMarginalLikelihood:
            steps = ((weight, *self._backward_prior(first, weight / len(x))) for first, weight in kept)
            return self._assemble(len(x), steps)

        return backward

    def _drawn(
        self, x: Tensor, y: Tensor, blocks: int | None, generator: torch.Generator | None
    ) -> list[tuple[Block, float]]:
        """Blocks of the partition with the weights 1/q_m of their terms."""
        if self.partition is None or self.partition.num_inputs != len(x):
            self.resample(x, y, generator)
        assert self.partition is not None
        if blocks is None:
            return [(block, 1.0) for block in self.partition.blocks]
        drawn = self.partition.draw(blocks, generator)
        return [(self.partition.blocks[m], 1.0 / (float(self.partition.probabilities[m]) * blocks)) for m in drawn]

    def _assemble(self, num_data: int, terms: Iterable[tuple[float, Tensor, Tensor]]) -> LogMarginalLikelihood:
        """The estimate from (weight, rho, log-determinant) of blocks; adds the gradient of the weights' prior."""
        log_prior = -0.5 * self.prior.quadratic_form(trainable_parameters(self.model))
        (-log_prior / num_data).backward()
        rho, log_det = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for weight, block_rho, block_log_det in terms:
            rho, log_det = rho + weight * block_rho, log_det + weight * block_log_det
        assert self.partition is not None
        certified = is_certified(self._spec, self._num_outputs, self._likelihood.softmax)
        return LogMarginalLikelihood(rho, log_prior.detach(), log_det, certified, len(self.partition))

    def _backward_blocks(
        self, x: Tensor, y: Tensor, blocks: int | None, generator: torch.Generator | None
    ) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Gradients of -weight (rho - 1/2 log-determinant) / N, block by block; the rows of one are alive at a time."""
        for block, weight in self._drawn(x, y, blocks, generator):
            first = self._first_pass(x, y, block, generator)
            rho, log_det = self._backward_prior(first, weight / len(x))
            if self._forward_hyperparameters:
                self._second_pass(first, block, weight / len(x))
            yield weight, rho, log_det

    def _first_pass(self, x: Tensor, y: Tensor, block: Block, generator: torch.Generator | None) -> FirstPass:
        """Rows of one block, chunk by chunk and without a graph, as its structure."""
        inputs, targets = x[block.inputs], y[block.inputs]
        noise = self._draw(len(inputs), generator)
        self._plan = check_model(self.model, inputs) if self._plan is None else self._plan
        outputs: list[Tensor] = []

        def rows_of_chunks() -> Iterator[dict[str, LayerRows]]:
            for chunk in self.chunks(len(inputs)):
                with torch.no_grad():
                    views = self._views(inputs[chunk], _part(noise, chunk))
                captured = capture(self.model, views, self._num_views, plan=self._plan)
                outputs.append(captured.outputs.detach())
                self._likelihood_fixed.check_targets(outputs[-1], targets[chunk])
                yield rows_by_layer(captured, self._factor(outputs[-1], block, chunk), keep_graph=False)

        structure = structure_named(self.estimator.structure)
        built = structure(ChunkedRows(rows_of_chunks(), self._shapes, structure.factored))
        share = block.columns.shape[-1] / self.partition.num_columns  # type: ignore[union-attr]
        return FirstPass(inputs, targets, noise, torch.cat(outputs), built, share)

    def _backward_prior(self, first: FirstPass, scale: float) -> tuple[Tensor, Tensor]:
        """rho and log-determinant; gradients of -scale (rho - 1/2 log-determinant) in prior and noise are added."""
        likelihood = self.likelihood
        log_det = first.structure.log_det(self.prior.scaled(likelihood.noise_variance))
        rho = first.share * likelihood.log_prob(first.outputs, first.targets).double().sum()
        (-scale * (rho - 0.5 * log_det)).backward()
        return rho.detach(), log_det.detach()

    def _second_pass(self, first: FirstPass, block: Block, scale: float) -> None:
        """The same gradient in what enters the forward pass, one chunk's graph at a time."""
        adjoint = first.structure.adjoint(self.prior.scaled(self.likelihood.noise_variance))
        for chunk in self.chunks(len(first.inputs)):
            views = self._views(first.inputs[chunk], _part(first.noise, chunk))
            captured = capture(self.model, views, self._num_views, differentiable=True, plan=self._plan)
            factor = self._factor(captured.outputs, block, chunk)
            surrogate = adjoint.pair(rows_by_layer(captured, factor, keep_graph=True), chunk)
            log_prob = self._likelihood_fixed.log_prob(captured.outputs, first.targets[chunk]).double().sum()
            self._accumulate(-scale * (first.share * log_prob - 0.5 * surrogate))

    def chunks(self, num_inputs: int) -> list[slice]:
        """Slices of inputs whose views one forward pass takes."""
        size = self.chunk or max(1, CHUNK_INPUTS // self._num_views)
        return [slice(start, min(start + size, num_inputs)) for start in range(0, num_inputs, size)]

    def _accumulate(self, loss: Tensor) -> None:
        """Add the gradient of a loss to the hyperparameters of the forward pass, never to the weights."""
        targets = self._forward_hyperparameters
        for parameter, gradient in zip(targets, torch.autograd.grad(loss, targets, allow_unused=True), strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    @property
    def _forward_hyperparameters(self) -> list[nn.Parameter]:
        """What enters the forward pass: the second pass is for these."""
        augmentation = [] if self.augmentation is None else list(self.augmentation.parameters())
        return [parameter for parameter in (*augmentation, *self.in_network) if parameter.requires_grad]

    @property
    def _likelihood_fixed(self) -> Likelihood:
        """The likelihood with its noise as a number: its own gradient was taken in the first pass."""
        noise = self.log_observation_noise
        return self._likelihood if noise is None else Gaussian(noise.detach().exp())

    def _factor(self, outputs: Tensor, block: Block, chunk: slice) -> Tensor:
        """The block's columns of L for one chunk. Shape (n, C, k)."""
        columns = block.columns if block.columns.ndim == 1 else block.columns[chunk]
        factor = self._likelihood.factor(outputs, self.estimator.outputs, self.tree)
        return Block(block.inputs[chunk], columns).select(factor)

    @property
    def _num_views(self) -> int:
        return 1 if self.augmentation is None else self.augmentation.num_views

    def _draw(self, num_inputs: int, generator: torch.Generator | None) -> Tensor | None:
        return None if self.augmentation is None else self.augmentation.draw(num_inputs, generator)

    def _views(self, x: Tensor, noise: Tensor | None) -> Tensor:
        return x if self.augmentation is None or noise is None else self.augmentation(x, noise)


def _part(noise: Tensor | None, chunk: slice) -> Tensor | None:
    return None if noise is None else noise[chunk]
