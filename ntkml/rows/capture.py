"""One forward pass with everything that rows of the Jacobian are made of: layer inputs and gradient edges.

A forward hook on every layer keeps its input a_l and the autograd edge of its output h_l. A pull-back of cotangents v
then asks autograd for d<v, f>/dh_l only, never for weight gradients, which is what makes one output cost about as much
as a plain backward pass to the activations. Parameters that a :class:`~ntkml.rows.exact.RowPlan` names take exact rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ntkml.layers.constant_filters import ConstantFilters, constant_convolutions
from ntkml.layers.layer_rows import qualified
from ntkml.layers.uses import LayerUse, average_views
from ntkml.parameters import trainable_parameters
from ntkml.rows.drawn_numbers import no_random_numbers
from ntkml.rows.exact import ExactForward, RowPlan
from ntkml.rows.graphs import uses_of
from ntkml.rows.plain_passes import attention_by_layers, plain_operations, plain_pass
from ntkml.rows.recorder import Recorder, check_row_type, layer_hooks

_REMEDY = (
    "what is for a part of the batch is to be computed for all of it and masked (torch.where); for a network that was changed "
    "since, make a new objective"
)


class OutdatedPlanError(ValueError):
    """A forward pass in which a layer that the plan captures cannot be captured, as where the network has changed."""


@dataclass(frozen=True)
class Capture:
    """A network's outputs on a batch, with what :meth:`pull_back` needs. ``outputs``: (n, C), averaged over views.

    ``differentiable``: layer inputs and pulled-back gradients keep their graph, so that what is built from them can be
    differentiated once more in whatever entered the forward pass. ``exact``: the parameters without a captured layer.
    """

    outputs: Tensor
    layers: tuple[LayerUse, ...]
    differentiable: bool = False
    exact: ExactForward | None = None
    num_views: int = 1

    def parameters(self) -> dict[str, LayerUse]:
        """The parameters of captured layers, each with its layer."""
        return {qualified(use.name, key): use for use in self.layers for key in use.keys}

    def pull_back(self, cotangents: Tensor, keep_graph: bool = True) -> list[tuple[Tensor, ...]]:
        """Gradients of <v_n, f(x_n)> towards every layer's edges. cotangents: (n, C) -> per layer, (n * S, ...) each.

        Raises:
            ValueError: the outputs do not depend on a layer.
        """
        pulled = self.gradients(cotangents, keep_graph)
        unused = [
            layer.name for layer, g in zip(self.layers, pulled, strict=True) if any(gradient is None for gradient in g)
        ]
        if unused:
            raise ValueError(f"the outputs do not depend on layer {unused[0]!r}: freeze or remove it")
        return pulled  # type: ignore[return-value]

    def gradients(self, cotangents: Tensor, keep_graph: bool = True) -> list[tuple[Tensor | None, ...]]:
        """As :meth:`pull_back`, with None at the edges of a layer that the outputs do not depend on.

        Of one that they depend on by other edges, those of a call whose result is not used have zeros.
        """
        if not self.layers:
            return []
        # Checkpointing runs parts of the network again.
        with plain_operations() if self.differentiable else nullcontext():
            found = iter(
                torch.autograd.grad(
                    self.outputs,
                    [edge for layer in self.layers for edge in layer.edges],
                    cotangents.to(self.outputs),
                    retain_graph=keep_graph or self.differentiable,
                    create_graph=self.differentiable,
                    materialize_grads=False,
                    allow_unused=True,
                )
            )
        return [_completed(layer.edges, [next(found) for _ in layer.edges]) for layer in self.layers]


def _completed(edges: Sequence[GradientEdge], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Zeros for what is None, unless all of it is."""
    if all(gradient is None for gradient in gradients):
        return tuple(gradients)
    return tuple(
        _zeros_at(edge) if gradient is None else gradient for edge, gradient in zip(edges, gradients, strict=True)
    )


def _zeros_at(edge: GradientEdge) -> Tensor:
    of_output = edge.node._input_metadata[edge.output_nr]
    return torch.zeros(of_output.shape, dtype=of_output.dtype, device=of_output.device)


def capture(
    model: nn.Module,
    inputs: Tensor,
    num_views: int = 1,
    differentiable: bool = False,
    plan: RowPlan | None = None,
) -> Capture:
    """Run ``model`` on inputs (n * S, ...), the S views of one datum adjacent, keeping what its rows need.

    ``differentiable`` keeps the graph of all of it; see :class:`Capture`. ``plan`` comes from
    :func:`ntkml.rows.model_contract.check_model`; None captures every layer.

    Raises:
        OutdatedPlanError: a parameter has no rows, or its captured ones would be wrong.
        ValueError: the outputs are not (n * S, C).
    """
    plan = plan or RowPlan()
    seen = survey(model, inputs, plan, num_views, differentiable, checked=True)
    weights = trainable_parameters(model)
    for name, problem in (*seen.problems.items(), *_uses_outside(seen.captured, weights)):
        raise OutdatedPlanError(
            f"layer {name!r} cannot be captured: {problem}, unlike on the inputs that the network was checked on; {_REMEDY}"
        )
    covered = {*plan.exact, *seen.captured.parameters()}
    missing = [name for name in weights if name not in covered]
    if missing:
        raise OutdatedPlanError(
            f"parameter {missing[0]!r} has no captured layer: take the plan of check_model, or freeze it; {_REMEDY}"
        )
    return seen.captured


def _uses_outside(captured: Capture, weights: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, str]]:
    """Layers with a parameter that more than the layer itself uses, with the reason.

    In every pass: what opens the branch with the other use may be a buffer, a counter or an input.
    """
    owners = captured.parameters()
    for name, count in uses_of(captured.outputs, {name: weights[name] for name in owners}).items():
        if count > owners[name].num_calls:
            yield owners[name].name, f"{name!r} is also used outside it"


@dataclass(frozen=True)
class Survey:
    """The capture of all layers that can be captured, and by layer what is wrong with the others.

    ``layer_inputs``: copies of what the captured layers were called with, call by call, by layer, unless the plan was ``checked``.
    """

    captured: Capture
    problems: dict[str, str]
    layer_inputs: dict[str, list[Tensor]]


def survey(
    model: nn.Module,
    inputs: Tensor,
    plan: RowPlan,
    num_views: int = 1,
    differentiable: bool = False,
    checked: bool = False,
) -> Survey:
    """Run ``model`` and see which layers can be captured.

    ``checked``: the plan was made by a survey, so that layers need not be held against what they should compute again.

    Raises:
        ValueError: the outputs are not (n * S, C) or random, or a layer ran without autograd.
    """
    recorder = Recorder(len(inputs), num_views, differentiable, checked)
    convolutions = list(constant_convolutions(model)) if differentiable else []

    def again() -> None:
        with plain_operations(), plain_pass(model):  # fused attention counts as random, whatever it drops
            model(inputs.clone())

    with (
        # In every pass, not only where a plan is made: modes may have changed since, and dropout may be any function.
        no_random_numbers(inputs.device, again),
        layer_hooks(model, plan, recorder.record),
        torch.enable_grad(),
        plain_operations() if differentiable else attention_by_layers(),
        plain_pass(model),
        ConstantFilters(convolutions) if convolutions else nullcontext(),
    ):
        outputs = model(inputs.clone())  # some networks work on their input in place
        averaged = average_views(_checked(outputs, inputs), num_views)
    recorder.check_versions()
    exact = ExactForward(model, plan, inputs, num_views, differentiable) if plan.exact else None
    captured = Capture(averaged, recorder.uses(), differentiable, exact, num_views)
    return Survey(captured, recorder.problems, recorder.layer_inputs)


def _to_do(outputs: Any, inputs: Tensor) -> str:
    """What makes (n, C) outputs of those that are not, as the end of the error."""
    if not isinstance(outputs, Tensor):
        return ": put it into a module that returns its logits alone"
    if outputs.ndim == 0 or len(outputs) != len(inputs):
        return ""
    if outputs.ndim == 1:
        return ": end it with unsqueeze(1)"
    one = outputs.shape[2:].numel() == 1
    return (
        ": end it with flatten(1)" if one else ": reduce all dimensions but n and C, as by a mean, or flatten(1) them"
    )


def _checked(outputs: Any, inputs: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
        gave = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the network must map (n, ...) inputs to (n, C) outputs; {tuple(inputs.shape)} gave {gave}{_to_do(outputs, inputs)}"
        )
    if not outputs.requires_grad:
        raise ValueError(
            "the outputs do not depend on any trainable layer through autograd: remove detach() or no_grad()"
        )
    check_row_type("the network's outputs are", outputs.dtype)
    return outputs
