"""Which parameters of a network are its weights, and which are learned by the marginal likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Hyperparameter(nn.Parameter):
    """A parameter of a network that is learned by the marginal likelihood instead of the weight loss.

    It enters the forward pass like any other, but has no prior and no Jacobian rows: it is not one of the P weights.
    ``load_state_dict(..., assign=True)`` turns it into a plain parameter, that is a weight: load without ``assign``. So do ``to_empty``
    from the meta device, and conversions under ``set_overwrite_module_params_on_conversion`` or ``set_swap_module_params_on_conversion``
    of ``torch.__future__``: make it anew afterwards, ``module.slope = ntkml.Hyperparameter(module.slope.detach())``.
    """

    __module__ = "ntkml"  # networks that are saved whole hold the public name, wherever this file lies

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """torch would make a plain parameter of it, a weight, where a network is saved whole."""
        return Hyperparameter, (self.data, self.requires_grad)


def is_weight(parameter: Any) -> bool:
    """Whether a parameter is one of the P weights: it requires a gradient and is no :class:`Hyperparameter`."""
    return parameter.requires_grad and not isinstance(parameter, Hyperparameter)


def hyperparameters(model: nn.Module) -> dict[str, Hyperparameter]:
    """What is learned inside a network, by name, in its order; frozen or not."""
    return {name: p for name, p in model.named_parameters() if isinstance(p, Hyperparameter)}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The P of all formulas: weights that require a gradient, in the network's order.

    Raises:
        ValueError: there is none.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if is_weight(parameter)}
    if not parameters:
        raise ValueError("the network has no trainable parameter: set requires_grad=True on what the prior is about")
    return parameters


@contextmanager
def standing_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``tensors`` stand in for the parameters of these names, wherever a module holds one of them.

    torch.func.functional_call does so by names alone: of a module that stands under two names it keeps the stand-ins.
    """
    ours = {id(model.get_parameter(name)): tensor for name, tensor in tensors.items()}
    places = [
        (module._parameters, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if id(parameter) in ours
    ]
    try:
        for held, key, parameter in places:
            held[key] = ours[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for held, key, parameter in places:
            held[key] = parameter


def called_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The outputs of a network with :func:`standing_in` for some of its parameters."""
    with standing_in(model, tensors):
        outputs: Tensor = model(inputs)
    return outputs


@contextmanager
def held_fixed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No graph that is made inside the ``with`` block leads to these parameters."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@contextmanager
def without_gradient_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Gradients as the network has them, whatever its owner makes of them for training (``weight.register_hook``)."""
    hooked = [(parameter, hooks) for parameter in parameters if (hooks := parameter._backward_hooks)]
    try:
        for parameter, _ in hooked:
            parameter._backward_hooks = None
        yield
    finally:
        for parameter, hooks in hooked:
            parameter._backward_hooks = hooks


def parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of :func:`trainable_parameters` by name; raises as they do."""
    return {name: parameter.shape for name, parameter in trainable_parameters(model).items()}
