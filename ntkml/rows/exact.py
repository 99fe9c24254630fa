"""Exact rows for parameters without a captured layer: of custom modules and tied weights.

Every input of the batch is given its own copy of those parameters, and the network runs on each input by itself
(``torch.func``: vmap of a functional call), so that autograd's gradient at the copies is the row of every input. Where
vmap does not know an operation, the network runs input by input. Both cost a forward pass more, and weight gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import vmap

from ntkml.layers.kronecker import ExactBlocks, KroneckerPart
from ntkml.layers.layer_rows import LayerRows, PlainRows, parted, qualified
from ntkml.parameters import called_with, without_gradient_hooks
from ntkml.rows.plain_passes import plain_operations, plain_pass, stored_as_before


@dataclass(frozen=True)
class RowPlan:
    """Which parameters take exact rows, each with the reason why it is not captured; all others are captured.

    ``vectorised``: by vmap, else input by input. ``steps_first``: layers that are called with the steps of a sequence in front of the
    batch. Decided, and checked, by :func:`ntkml.rows.model_contract.check_model`.
    """

    exact: Mapping[str, str] = field(default_factory=dict)
    vectorised: bool = True
    steps_first: frozenset[str] = frozenset()

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The parameters' own names by module."""
        grouped: dict[str, tuple[str, ...]] = {}
        for name in self.exact:
            module, key = parted(name)
            grouped[module] = (*grouped.get(module, ()), key)
        return grouped


class ExactForward:
    """The outputs of a batch once more, as functions of copies of the planned parameters, one for every input."""

    def __init__(self, model: nn.Module, plan: RowPlan, inputs: Tensor, num_views: int, differentiable: bool):
        """inputs: (n * S, ...), the S views of one datum adjacent. ``differentiable``: rows keep their graph."""
        self._plan = plan
        self._model, self._differentiable = model, differentiable
        self._views = inputs.unflatten(0, (-1, num_views))  # (n, S, ...)

    def rows_by_layer(self, factor: Tensor) -> dict[str, LayerRows]:
        """The rows of every group, computed together when the first one is asked for. factor: (n, C, k)."""
        pulled = PulledRows(self, factor)
        return {layer: ExactGroup(layer, keys, pulled) for layer, keys in self._plan.groups().items()}

    def pull_back(self, cotangents: Tensor) -> dict[str, Tensor]:
        """The row of every input. cotangents: (n, C) -> by parameter (n, *shape)."""
        if self._plan.vectorised:
            outputs, copies = self._together
            return dict(zip(self._plan.exact, self._gradients(outputs, copies, cotangents), strict=True))
        weights = [self._model.get_parameter(name) for name in self._plan.exact]
        by_input = [
            self._gradients(outputs, weights, v.unsqueeze(0))
            for outputs, v in zip(self._one_by_one, cotangents, strict=True)
        ]
        return {name: torch.cat([g[i] for g in by_input]) for i, name in enumerate(self._plan.exact)}

    def _gradients(self, outputs: Tensor, leaves: Sequence[Tensor], cotangents: Tensor) -> list[Tensor]:
        with without_gradient_hooks(leaves), plain_operations():  # checkpointing runs parts of the network again
            found = torch.autograd.grad(
                outputs,
                leaves,
                cotangents.to(outputs),
                retain_graph=True,
                create_graph=self._differentiable,
                allow_unused=True,
            )
        shapes = [leaf.shape if self._plan.vectorised else (1, *leaf.shape) for leaf in leaves]
        return [
            outputs.new_zeros(shape) if g is None else (g.to_dense() if g.is_sparse else g).reshape(shape)
            for g, shape in zip(found, shapes, strict=True)
        ]

    @cached_property
    def _together(self) -> tuple[Tensor, list[Tensor]]:
        """Outputs (n, C) and the copies (n, *shape) that their graph leads to; made once for all cotangents."""
        n = len(self._views)
        weights = {name: self._model.get_parameter(name).detach() for name in self._plan.exact}
        copies = {name: w.expand(n, *w.shape).requires_grad_() for name, w in weights.items()}

        def averaged(own: dict[str, Tensor], views: Tensor) -> Tensor:
            return called_with(self._model, own, views.clone()).mean(0)

        with torch.enable_grad(), plain_operations(), plain_pass(self._model), stored_as_before(self._model):
            outputs = vmap(averaged, randomness="different")(copies, self._views)
        return outputs, list(copies.values())

    @cached_property
    def _one_by_one(self) -> list[Tensor]:
        """Outputs of every input, (1, C) each."""
        with torch.enable_grad(), plain_operations(), plain_pass(self._model):
            return [self._model(views.clone()).mean(0, keepdim=True) for views in self._views]


class PulledRows:
    """The rows of all planned parameters for one factor (n, C, k), computed when they are first used."""

    def __init__(self, forward: ExactForward, factor: Tensor):
        self.counts = factor.shape[0], factor.shape[2]
        self._forward, self._factor = forward, factor

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """By parameter, (n, k, *shape)."""
        columns = [self._forward.pull_back(v) for v in self._factor.unbind(-1)]
        return {name: torch.stack([column[name] for column in columns], dim=1) for name in columns[0]}


@dataclass(frozen=True)
class ExactGroup(PlainRows):
    """The planned parameters of one module."""

    layer: str
    keys: tuple[str, ...]
    pulled: PulledRows

    @property
    def counts(self) -> tuple[int, int]:
        return self.pulled.counts

    def rows(self) -> dict[str, Tensor]:
        return {key: row.reshape(*self.counts, -1) for key, row in self._shaped().items()}

    def reduced(self) -> KroneckerPart:
        return ExactBlocks(self._shaped())

    def _shaped(self) -> dict[str, Tensor]:
        """(n, k, *shape) by parameter."""
        return {key: self.pulled.rows[qualified(self.layer, key)] for key in self.keys}
