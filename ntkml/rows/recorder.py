"""What hooks see of the layers of one forward pass: which of them can be captured, and with what inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.layers import computes_as_known
from ntkml.layers.calls import Call, inside, tensors_in, unsupported
from ntkml.layers.layer_rows import qualified
from ntkml.layers.several_calls import used
from ntkml.layers.uses import LayerUse, OneUse
from ntkml.parameters import is_weight, trainable_parameters
from ntkml.rows.exact import RowPlan
from ntkml.rows.graphs import ROW_TYPES


@contextmanager
def layer_hooks(model: nn.Module, plan: RowPlan, hook: Callable[[Call], Any]) -> Iterator[None]:
    """Call ``hook`` after every layer that can be captured; what it returns replaces the output.

    Before the owner's hooks, whatever those make of the output: they are a part of the network behind it. Not in the passes of
    other threads.
    """
    own = get_ident()
    handles = [
        module.register_forward_hook(
            lambda module, given, named, output, name=name, keys=keys: (
                hook(Call(name, module, keys, given, named, output, name in plan.steps_first))
                if get_ident() == own
                else None
            ),
            prepend=True,
            with_kwargs=True,
        )
        for name, module, keys in _captured_layers(model, plan)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _captured_layers(model: nn.Module, plan: RowPlan) -> Iterator[tuple[str, nn.Module, dict[str, tuple[str, ...]]]]:
    """Layers of a known type whose trainable parameters are all their own and take no exact rows, with those by layer."""
    weights = trainable_parameters(model)

    def captured(name: str, module: nn.Module) -> tuple[str, ...]:
        keys = tuple(key for key, parameter in module.named_parameters(recurse=False) if is_weight(parameter))
        full = [qualified(name, key) for key in keys]
        return keys if all(key in weights and key not in plan.exact for key in full) else ()

    for name, module in model.named_modules():
        if computes_as_known(module) and unsupported(module) is None:
            keys = {layer: found for layer, part in inside(name, module).items() if (found := captured(layer, part))}
            if keys:
                yield name, module, keys


class Recorder:
    """What the hooks of one forward pass saw."""

    def __init__(self, num_inputs: int, num_views: int, graph: bool, checked: bool):
        self.problems: dict[str, str] = {}
        self.layer_inputs: dict[str, list[Tensor]] = {}
        self._num_inputs, self._num_views, self._graph = num_inputs, num_views, graph
        self._checked = checked
        self._seen: dict[str, list[OneUse]] = {}
        self._versions: list[tuple[str, Tensor, int]] = []

    def record(self, call: Call) -> Any:
        """Keep one call of a layer; returns what replaces its output, or None."""
        problem = self._problem(call)
        if not call.result.requires_grad:
            if not torch._C._functorch.is_functorch_wrapped_tensor(call.result):
                raise ValueError(
                    f"layer {call.name!r} ran without autograd: leave torch.inference_mode(), keep torch.no_grad() out of forward, and "
                    "give checkpoint use_reentrant=False"
                )
            problem = "it is called under torch.vmap"  # where no tensor says that it requires a gradient
        check_row_type(f"layer {call.name!r} computes in", call.result.dtype)
        if problem is None and call.computed_anew and _checkpointed():
            problem = "torch.utils.checkpoint computes it again: leave that out in eval mode"
        if problem is None:
            uses, replaced = call.uses(self._num_views, self._graph)
            if call.computed_anew and replaced is not None and not (self._checked or _close(replaced, call.output)):
                problem = "a hook of all modules or a subclass changes what it computes"
        if problem is not None:
            self.problems = {**dict.fromkeys(call.keys, problem), **self.problems}
            return None
        seen = None if self._checked else call.inputs.detach().clone()  # what comes after the layer may write over it
        for use in uses:
            self._seen.setdefault(use.name, []).append(use)
            if seen is not None:
                self.layer_inputs.setdefault(use.name, []).append(seen)
            if use.kept is not None:
                self._versions.append((use.name, use.kept, use.kept._version))
        return replaced

    def _problem(self, call: Call) -> str | None:
        if problem := call.unsupported():
            return problem
        inputs = call.inputs
        if inputs.ndim == 0 or len(inputs) != self._num_inputs:
            return "it does not see the batch in its first dimension"
        return None

    def uses(self) -> tuple[LayerUse, ...]:
        return tuple(used(calls) for name, calls in self._seen.items() if name not in self.problems)

    def check_versions(self) -> None:
        for name, inputs, version in self._versions:
            if version != inputs._version:
                raise ValueError(
                    f"the input of layer {name!r} is overwritten in place after the layer used it, but its "
                    "gradient needs it: use the out-of-place operation"
                )


def check_row_type(what: str, kind: torch.dtype) -> None:
    """Raise ValueError where the type of an output, ``what`` in the error, has fewer digits, as autocast makes it."""
    if kind not in ROW_TYPES:
        raise ValueError(
            f"{what} {kind}, but rows need float32 or float64: leave torch.autocast out of forward, or give it "
            "enabled=self.training and call model.eval()"
        )


def _checkpointed() -> bool:
    """Whether this part of the forward pass is computed again in the backward pass, where no hook of a capture replaces anything."""
    # No public function tells. A torch without this one raises an error of its own.
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_tracing: None)(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"


def _close(replaced: Any, output: Any) -> bool:
    """Equal but for rounding; both are exactly zero where a scale and a bias are."""
    return all(
        one is other or _equal(one, other) for one, other in zip(tensors_in(replaced), tensors_in(output), strict=True)
    )


def _equal(replaced: Tensor, output: Tensor) -> bool:
    tolerance = 1e-4 * output.detach().abs().max() if output.numel() else 0.0
    return replaced.shape == output.shape and bool(((replaced - output).detach().abs() <= tolerance).all())
