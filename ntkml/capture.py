"""One forward pass with everything that rows of the Jacobian are made of: layer inputs and gradient edges.

A forward hook on every layer keeps its input a_l and the autograd edge of its output h_l. A pull-back of cotangents v
then asks autograd for d<v, f>/dh_l only, never for weight gradients, which is what makes one output cost about as much
as a plain backward pass to the activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ntkml.layers import LAYER_TYPES, layer_for
from ntkml.layers.positions import Positions


@dataclass(frozen=True)
class CapturedLayer:
    """One use of one layer: its name in the network, the module, what went in, and the edge of what came out."""

    name: str
    module: nn.Module
    inputs: Tensor
    edge: GradientEdge
    num_views: int

    @cached_property
    def patches(self) -> Tensor:
        """The input at every position, made once for all cotangents. Shape (n, S, q, d, T)."""
        return layer_for(self.module).patches(self.module, self.inputs, self.num_views)

    def positions(self, pulled: Tensor) -> Positions:
        """The layer's positions for k gradients pulled back to its output. pulled: (n * S, k, ...)."""
        weight, bias = self.module.weight, self.module.bias
        return Positions(
            self.patches,
            layer_for(self.module).gradients(self.module, pulled, self.num_views),
            is_weight(weight),
            bias is not None and is_weight(bias),
        )


@dataclass(frozen=True)
class Capture:
    """A network's outputs on a batch, with what :meth:`pull_back` needs. ``outputs``: (n, C), averaged over views.

    ``differentiable``: layer inputs and pulled-back gradients keep their graph, so that what is built from them can be
    differentiated once more in whatever entered the forward pass.
    """

    outputs: Tensor
    layers: tuple[CapturedLayer, ...]
    differentiable: bool = False

    def pull_back(self, cotangents: Tensor, keep_graph: bool = True) -> list[Tensor]:
        """Gradients of <v_n, f(x_n)> towards every layer's output. cotangents: (n, C) -> per layer (n * S, ...)."""
        edges = [layer.edge for layer in self.layers]
        gradients = torch.autograd.grad(
            self.outputs,
            edges,
            cotangents.to(self.outputs),
            retain_graph=keep_graph or self.differentiable,
            create_graph=self.differentiable,
            materialize_grads=False,
            allow_unused=True,
        )
        unused = [layer.name for layer, gradient in zip(self.layers, gradients, strict=True) if gradient is None]
        if unused:
            raise ValueError(f"the outputs do not depend on layer {unused[0]!r}: freeze or remove it")
        return list(gradients)


def average_views(outputs: Tensor, num_views: int) -> Tensor:
    """The network function f(x_n) = mean over views of the raw outputs. (n * S, C) -> (n, C)."""
    return outputs.reshape(-1, num_views, *outputs.shape[1:]).mean(1)


class Hyperparameter(nn.Parameter):
    """A parameter of a network that is learned by the marginal likelihood instead of the weight loss.

    It enters the forward pass like any other, but has no prior and no rows: it is not one of the P weights.
    """


def is_weight(parameter: Any) -> bool:
    """Whether a parameter is one of the P weights: it requires a gradient and is no :class:`Hyperparameter`."""
    return parameter.requires_grad and not isinstance(parameter, Hyperparameter)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The P of all formulas: weights that require a gradient, in the network's order.

    Raises:
        ValueError: there is none.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if is_weight(parameter)}
    if not parameters:
        raise ValueError("the network has no trainable parameter: set requires_grad=True on what the prior is about")
    return parameters


def capture(model: nn.Module, inputs: Tensor, num_views: int = 1, differentiable: bool = False) -> Capture:
    """Run ``model`` on inputs (n * S, ...), the S views of one datum adjacent, keeping what its rows need.

    ``differentiable`` keeps the graph of all of it; see :class:`Capture`.

    Raises:
        ValueError: the model cannot be captured (see :func:`ntkml.model_contract.check_model`), or its outputs are not (n * S, C).
    """
    layers, outputs = _forward(model, inputs, num_views, differentiable)
    for layer, version in layers:
        if version != layer.inputs._version:
            raise ValueError(
                f"the input of layer {layer.name!r} is overwritten in place after the layer used it: its weight has no "
                "gradient then; use the out-of-place operation"
            )
    return Capture(outputs, tuple(layer for layer, _ in layers), differentiable)


def _forward(
    model: nn.Module, inputs: Tensor, num_views: int, differentiable: bool
) -> tuple[list[tuple[CapturedLayer, int]], Tensor]:
    seen: list[tuple[CapturedLayer, int]] = []

    def keep(name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if not given:
            raise ValueError(f"layer {name!r} is called with a keyword: call it with its input as the first argument")
        if not output.requires_grad:
            raise ValueError(
                f"layer {name!r} ran without autograd: leave torch.inference_mode(), and keep torch.no_grad() out of forward"
            )
        if len(given[0]) != len(inputs):
            raise ValueError(
                f"layer {name!r} was called on {len(given[0])} entries for {len(inputs)} inputs: its first dimension must "
                "be the batch; put other dimensions between it and the features"
            )
        if any(layer.module is module for layer, _ in seen):
            raise ValueError(
                f"layer {name!r} is used more than once in a forward pass: its uses would need separate rows; use one module per use"
            )
        kept = given[0] if differentiable else given[0].detach()
        seen.append((CapturedLayer(name, module, kept, get_gradient_edge(output), num_views), kept._version))

    with _hooks(model, keep), torch.enable_grad():
        outputs = model(inputs.clone())  # some networks work on their input in place
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
            gave = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"the network must map (n, ...) inputs to (n, C) outputs; {tuple(inputs.shape)} gave {gave}"
            )
        if not outputs.requires_grad:
            raise ValueError(
                "the outputs do not depend on any trainable layer through autograd: remove detach() or no_grad()"
            )
        averaged = average_views(outputs, num_views)
    return seen, averaged


@contextmanager
def _hooks(model: nn.Module, keep: Any) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda module, given, output, name=name: keep(name, module, given, output))
        for name, module in model.named_modules()
        if isinstance(module, LAYER_TYPES) and any(is_weight(p) for p in module.parameters(recurse=False))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
