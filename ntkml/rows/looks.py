"""What a few inputs show of a network, each alone and all in one batch.

Outputs and gradients of an input that are others in a batch than alone are refused; a layer that sees other inputs than its
network was given, or sees them in another order, is named: its captured rows would be those of other inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ntkml.layers.calls import Call, has_steps_first
from ntkml.parameters import trainable_parameters, without_gradient_hooks
from ntkml.rows.capture import Capture, survey
from ntkml.rows.exact import RowPlan
from ntkml.rows.plain_passes import attention_by_layers, plain_pass
from ntkml.rows.recorder import layer_hooks

_REMEDY = "call model.eval(), give recurrent layers and attention batch_first=True, or remove such layers"

OUT_OF_PLACE = "it does not see every input at its place in the batch"


@dataclass(frozen=True)
class Look:
    """One forward pass over some of the few inputs, with cotangents (m, C) that are the same for an input in every look.

    ``layer_inputs``: what captured layers were called with, (m, ...) at every call; ``problems``: what is wrong with capturing others.
    """

    weights: Mapping[str, nn.Parameter]
    captured: Capture
    cotangents: Tensor
    layer_inputs: Mapping[str, Sequence[Tensor]]
    problems: Mapping[str, str]

    @property
    def outputs(self) -> Tensor:
        return self.captured.outputs.detach()

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """By parameter, sum_n <v_n, df_n/dw>, flat; zeros where the outputs do not depend on it."""
        return summed_gradients([self])

    @cached_property
    def largest(self) -> float:
        """The largest entry of the gradients."""
        return float(torch.stack([gradient.abs().max() for gradient in self.gradients.values()]).max())


@dataclass(frozen=True)
class Looks:
    """Every input alone, and all of them together."""

    alone: Sequence[Look]
    together: Look

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with capturing a layer, by its name."""
        found: dict[str, str] = {}
        for look in (self.together, *self.alone):
            found = {**look.problems, **found}
        for name, calls in self.together.layer_inputs.items():
            alone = [look.layer_inputs.get(name, ()) for look in self.alone]
            if not all(_sees(own, [call[place] for call in calls]) for place, own in enumerate(alone)):
                found.setdefault(name, OUT_OF_PLACE)
        return found


def steps_first(model: nn.Module, one: Tensor, plan: RowPlan) -> frozenset[str]:
    """The layers that see the steps of a sequence in front of the batch, from batches of one input (1, ...) and of two.

    Some such layer cannot be captured as others are in a look at one input or at several, unless there is one input of one step.
    """
    seen: dict[str, tuple[nn.Module, dict[int, torch.Size]]] = {}
    for count in (1, 2):

        def keep(call: Call, count: int = count) -> None:
            if call.given and isinstance(call.given[0], Tensor):
                seen.setdefault(call.name, (call.module, {}))[1][count] = call.given[0].shape

        with torch.no_grad(), attention_by_layers(), plain_pass(model), layer_hooks(model, plan, keep):
            model(torch.cat([one] * count))
    return frozenset(name for name, (module, shapes) in seen.items() if has_steps_first(module, shapes))


def looks_at(model: nn.Module, few: Tensor, plan: RowPlan) -> Looks:
    """Looks at inputs (n, ...); ``plan`` names the parameters that are not to be captured.

    Raises:
        ValueError: outputs or gradients of an input depend on the other inputs of its batch.
    """
    indices = list(range(len(few)))
    together = _look(model, few, indices, plan)
    looks = Looks([_look(model, few, [index], plan) for index in indices], together)
    _check_outputs(torch.cat([look.outputs for look in looks.alone]), together.outputs)
    _check_gradients(looks)
    return looks


def out_of_place(model: nn.Module, many: Tensor, plan: RowPlan, known: Mapping[str, str]) -> dict[str, str]:
    """Layers that see other inputs, or see them elsewhere in the batch, than the network was given, by name, with the reason.

    Two forward passes, the second with the inputs reversed: a batch that is sorted by something of its inputs shows it unless that
    is the same for all, so that there are to be more of them than rows are computed for. ``known``: layers that are not to be captured anyway.

    Raises:
        ValueError: outputs of an input depend on the other inputs of its batch.
    """
    with torch.no_grad(), attention_by_layers(), plain_pass(model):
        (outputs, marks), (reversed_outputs, reversed_marks) = (
            _marked(model, each, plan, known) for each in (many, many.flip(0))
        )
    _check_outputs(outputs, reversed_outputs.flip(0))
    return {
        name: OUT_OF_PLACE
        for name, calls in marks.items()
        if len(calls) != len(reversed_marks.get(name, ()))
        or any(len(mark) != len(many) for mark in calls)
        or not all(_same(mark, other.flip(0)) for mark, other in zip(calls, reversed_marks[name], strict=True))
    }


def _marked(
    model: nn.Module, inputs: Tensor, plan: RowPlan, known: Mapping[str, str]
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Outputs, and one number for every input of a call, by its layer: the inputs themselves could fill the memory."""
    marks: dict[str, list[Tensor]] = {}

    def mark(call: Call) -> None:
        wanted = [name for name in call.keys if name not in known]
        if wanted and call.given and isinstance(call.given[0], Tensor):
            flat = call.inputs.unsqueeze(-1).flatten(1)  # of an empty batch too, and of one index for every input
            flat = flat if flat.is_floating_point() else flat.double()
            own = flat @ torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device).cos()
            for name in wanted:
                marks.setdefault(name, []).append(own)

    with layer_hooks(model, plan, mark):
        return model(inputs.clone()), marks


def _look(model: nn.Module, few: Tensor, indices: list[int], plan: RowPlan) -> Look:
    seen = survey(model, few[indices], plan)
    outputs = seen.captured.outputs.detach()
    # No two inputs and no two outputs of one weigh the same, so that nothing is lost in a sum over them.
    by_input, by_output = (torch.linspace(1.0, 2.0, n, device="cpu").to(outputs) for n in (len(few), outputs.shape[1]))
    cotangents = torch.outer(by_input[indices], by_output)
    return Look(trainable_parameters(model), seen.captured, cotangents, seen.layer_inputs, seen.problems)


def summed_gradients(looks: Sequence[Look]) -> dict[str, Tensor]:
    """The sum of :attr:`Look.gradients` over looks, in one backward pass."""
    weights = looks[0].weights
    with without_gradient_hooks(weights.values()):
        found = torch.autograd.grad(
            [look.captured.outputs for look in looks],
            list(weights.values()),
            [look.cotangents for look in looks],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
    return {name: (g.to_dense() if g.is_sparse else g).flatten() for name, g in zip(weights, found, strict=True)}


def _check_outputs(own: Tensor, others: Tensor) -> None:
    if not _same(own, others):
        raise ValueError(f"the outputs of an input depend on the other inputs of its batch (or are random): {_REMEDY}")


def _check_gradients(looks: Looks) -> None:
    """The same of the gradients, which show it where equal outputs hide it, as behind a head that starts at zero."""
    batch = looks.together
    for name, own in summed_gradients(looks.alone).items():
        # In float32 a ReLU whose input is zero but for rounding may be open alone and closed in a batch.
        tolerance = (1e-3 if own.dtype == torch.float64 else 0.1) * own.norm() + 1e-5 * batch.largest
        if bool((batch.gradients[name] - own).norm() > tolerance):
            raise ValueError(
                f"parameter {name!r} has a gradient that changes with the other inputs of a batch (or that is random): {_REMEDY}"
            )


def _sees(alone: Sequence[Tensor], together: Sequence[Tensor]) -> bool:
    """Whether a layer's calls see an input alone, (1, ...) each, as in a batch, (...) each."""
    return len(alone) == len(together) and all(
        _same(*_overlap(one[0], other)) for one, other in zip(alone, together, strict=True)
    )


def _overlap(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What both have: a network may cut its batch to the longest sequence in it, which leaves the rows right."""
    common = tuple(slice(min(sizes)) for sizes in zip(own.shape, other.shape, strict=False))
    return own[common], other[common]


def _same(own: Tensor, other: Tensor) -> bool:
    """Equal but for rounding; of what is no number, nothing is known."""
    if own.shape != other.shape:
        return False
    tolerance = 1e-3 * own.abs().max() + 1e-6 if own.numel() else 0.0
    return bool(((own - other).abs() <= tolerance).all()) or not bool(torch.isfinite(own).all())
