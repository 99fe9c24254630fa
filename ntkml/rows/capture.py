"""One forward pass with everything that rows of the Jacobian are made of: layer inputs and gradient edges.

A forward hook on every layer keeps its input a_l and the autograd edge of its output h_l. A pull-back of cotangents v
then asks autograd for d<v, f>/dh_l only, never for weight gradients, which is what makes one output cost about as much
as a plain backward pass to the activations. Parameters that a :class:`~ntkml.rows.exact.RowPlan` names take exact rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.layers import computes_as_known
from ntkml.layers.constant_filters import ConstantFilters
from ntkml.layers.layer_rows import qualified
from ntkml.layers.uses import LayerUse, average_views, unsupported, use_of
from ntkml.parameters import Hyperparameter, is_weight, trainable_parameters
from ntkml.rows.drawn_numbers import no_random_numbers
from ntkml.rows.exact import ExactForward, RowPlan, plain_attention, plain_recurrence

_ALL_INPUTS = (
    "a layer for a part of the batch is to be called on all of it and its outputs masked (torch.where); for a network "
    "that was changed since, make a new objective"
)


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
        """As :meth:`pull_back`, with None where the outputs do not depend on an edge."""
        if not self.layers:
            return []
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
        return [tuple(next(found) for _ in layer.edges) for layer in self.layers]


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
        ValueError: a parameter has no rows, or the outputs are not (n * S, C).
    """
    plan = plan or RowPlan()
    seen = survey(model, inputs, plan, num_views, differentiable, checked=True)
    for name, problem in seen.problems.items():
        raise ValueError(
            f"layer {name!r} cannot be captured: {problem}, unlike on the inputs that the network was checked on; {_ALL_INPUTS}"
        )
    covered = {*plan.exact, *(qualified(use.name, key) for use in seen.captured.layers for key in use.keys)}
    missing = [name for name in trainable_parameters(model) if name not in covered]
    if missing:
        raise ValueError(
            f"parameter {missing[0]!r} has no captured layer: take the plan of check_model, or freeze it; {_ALL_INPUTS}"
        )
    return seen.captured


@dataclass(frozen=True)
class Survey:
    """The capture of all layers that can be captured, and by layer what is wrong with the others.

    ``layer_inputs``: copies of what the captured layers were called with, by layer, unless the plan was ``checked``.
    """

    captured: Capture
    problems: dict[str, str]
    layer_inputs: dict[str, Tensor]


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
    recorder = _Recorder(len(inputs), num_views, differentiable, checked)
    convolutions = list(_constant_convolutions(model)) if differentiable else []

    def again() -> None:
        with plain_attention(), plain_recurrence(model):  # fused attention counts as random, whatever it drops
            model(inputs.clone())

    with (
        # In every pass, not only where a plan is made: modes may have changed since, and dropout may be any function.
        no_random_numbers(inputs.device, again),
        layer_hooks(model, plan, recorder.record),
        torch.enable_grad(),
        plain_attention() if differentiable else nullcontext(),
        plain_recurrence(model),
        ConstantFilters(convolutions) if convolutions else nullcontext(),
    ):
        outputs = model(inputs.clone())  # some networks work on their input in place
        averaged = average_views(_checked(outputs, inputs), num_views)
    recorder.check_versions()
    exact = ExactForward(model, plan, inputs, num_views, differentiable) if plan.exact else None
    captured = Capture(averaged, recorder.uses(), differentiable, exact, num_views)
    return Survey(captured, recorder.problems, recorder.layer_inputs)


def _checked(outputs: Any, inputs: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
        gave = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"the network must map (n, ...) inputs to (n, C) outputs; {tuple(inputs.shape)} gave {gave}")
    if not outputs.requires_grad:
        raise ValueError(
            "the outputs do not depend on any trainable layer through autograd: remove detach() or no_grad()"
        )
    return outputs


class _Recorder:
    """What the hooks of one forward pass saw."""

    def __init__(self, num_inputs: int, num_views: int, graph: bool, checked: bool):
        self.problems: dict[str, str] = {}
        self.layer_inputs: dict[str, Tensor] = {}
        self._num_inputs, self._num_views, self._graph = num_inputs, num_views, graph
        self._checked = checked
        self._seen: dict[str, LayerUse] = {}
        self._versions: dict[str, tuple[Tensor, int]] = {}

    def record(
        self, name: str, keys: tuple[str, ...], module: nn.Module, given: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        """Keep one call of a layer; returns what replaces its output, or None."""
        problem = self._problem(name, given)
        if not output.requires_grad:
            if not torch._C._functorch.is_functorch_wrapped_tensor(output):
                raise ValueError(
                    f"layer {name!r} ran without autograd: leave torch.inference_mode(), keep torch.no_grad() out of forward, and give "
                    "checkpoint use_reentrant=False"
                )
            problem = "it is called under torch.vmap"  # where no tensor says that it requires a gradient
        if problem is not None:
            self.problems.setdefault(name, problem)
            return None
        use, replaced = use_of(name, module, keys, given[0], output, self._num_views, self._graph)
        if not (self._checked or replaced is None or _close(replaced, output)):
            self.problems[name] = "a hook of all modules or a subclass changes what it computes"
            return None
        self._seen[name] = use
        if not self._checked:
            self.layer_inputs[name] = given[0].detach().clone()  # what comes after the layer may write over it
        if replaced is None:
            self._versions[name] = given[0], given[0]._version
        return replaced

    def _problem(self, name: str, given: tuple[Any, ...]) -> str | None:
        if not given:
            return "it is called with a keyword"
        if given[0].ndim == 0 or len(given[0]) != self._num_inputs:
            return "it does not see the batch in its first dimension"
        return "it is used more than once in a forward pass" if name in self._seen else None

    def uses(self) -> tuple[LayerUse, ...]:
        return tuple(use for name, use in self._seen.items() if name not in self.problems)

    def check_versions(self) -> None:
        for name, (inputs, version) in self._versions.items():
            if version != inputs._version:
                raise ValueError(
                    f"the input of layer {name!r} is overwritten in place after the layer used it: its weight has no "
                    "gradient then; use the out-of-place operation"
                )


def _close(replaced: Tensor, output: Tensor) -> bool:
    """Equal but for rounding; both are exactly zero where a scale and a bias are."""
    tolerance = 1e-4 * output.detach().abs().max() if output.numel() else 0.0
    return replaced.shape == output.shape and bool(((replaced - output).detach().abs() <= tolerance).all())


@contextmanager
def layer_hooks(model: nn.Module, plan: RowPlan, hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """Call hook(name, keys, module, given, output) after every layer that can be captured.

    Before its owner's hooks, whatever those make of its output: they are a part of the network behind it.
    """
    handles = [
        module.register_forward_hook(
            lambda module, given, output, name=name, keys=keys: hook(name, keys, module, given, output), prepend=True
        )
        for name, keys, module in _captured_layers(model, plan)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _constant_convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    """Those whose parameters are weights, frozen or not, and neither learned as hyperparameters nor computed from others.

    None of a compiled network: it would be compiled again in every capture.
    """
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        return
    for module in model.modules():
        own = module._parameters
        learned = any(isinstance(parameter, Hyperparameter) for parameter in own.values())
        if isinstance(module, nn.Conv2d) and own.get("weight") is not None and not learned:
            yield module


def _captured_layers(model: nn.Module, plan: RowPlan) -> Iterator[tuple[str, tuple[str, ...], nn.Module]]:
    """Layers of a known type whose trainable parameters are all their own and take no exact rows."""
    weights = trainable_parameters(model)
    for name, module in model.named_modules():
        keys = tuple(key for key, parameter in module.named_parameters(recurse=False) if is_weight(parameter))
        full = [qualified(name, key) for key in keys]
        if not keys or not computes_as_known(module) or unsupported(module) is not None:
            continue
        if all(key in weights and key not in plan.exact for key in full):
            yield name, keys, module
