"""What a network must be for its rows to be exact, checked on the network itself and not only on its types.

The check also gives the plan by which every parameter gets its rows (:mod:`ntkml.rows.plans`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ntkml.machine.full_precision import full_precision
from ntkml.parameters import trainable_parameters
from ntkml.rows.exact import RowPlan
from ntkml.rows.graphs import ROW_TYPES, fewer_digits, uses_of
from ntkml.rows.looks import looks_at, out_of_place, steps_first
from ntkml.rows.plans import not_captured, plan_rows
from ntkml.rows.recorder import check_row_type


@full_precision()
def check_model(model: nn.Module, inputs: Tensor) -> RowPlan:
    """Refuse a model whose rows would be wrong, by name and with what to do; say how the others get theirs.

    Beside the types, two identities are checked on a few inputs: outputs and gradients of an input do not depend on the rest of
    its batch, and the rows are autograd's own gradient of the parameters. A module with a parameter whose captured rows are not
    (a weight used outside its layer, or a layer called with the batch in another order) takes exact rows, and those
    are held against the same gradient.

    Raises:
        ValueError: a scripted network, complex weights, BatchNorm or Dropout in training mode, outputs that depend on the batch
            or are random, a parameter that the outputs do not depend on, or one whose exact rows are not autograd's gradient
            either.
    """
    if any(isinstance(module, torch.jit.RecursiveScriptModule) for module in model.modules()):
        raise ValueError(
            "torch.jit.script hides the layers of a network: make the objective from the module that was scripted"
        )
    check_modes(model)
    _check_numbers(model, inputs)
    few, many = (inputs[chosen].detach() for chosen in (_different(inputs), _spread(len(inputs), 32)))
    known = RowPlan(not_captured(model))
    looks = looks_at(model, few, known)
    if 0 in uses_of(looks.together.captured.outputs, trainable_parameters(model)).values():
        few = inputs[_spread(len(inputs), 16)].detach()  # to find one that leads to every part, as to an expert
        looks = looks_at(model, few, known)
    # One input of one step shows no problem, whichever of the two comes first.
    if (looks.problems or len(few) == 1) and (found := steps_first(model, few[:1], known)):
        known = replace(known, steps_first=found)
        looks = looks_at(model, few, known)
    if kind := fewer_digits(looks.together.captured.outputs):
        check_row_type("an operation of the network computes in", kind)
    problems = looks.problems
    problems.update(out_of_place(model, many, known, problems))
    return plan_rows(model, few, looks, known, problems)


def check_modes(model: nn.Module, called: str = "model") -> None:
    """What of :func:`check_model` may change between two estimates without a word, and costs nothing to see.

    ``called``: the user's word for it, in the error.
    """
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            why, remedy = "is in training mode", f"call {called}.eval(), or"
            if not module.training:
                why, remedy = "keeps no running statistics", "keep them (track_running_stats=True), or"
            raise ValueError(
                f"{kind} {name!r} {why}, so an output depends on the whole batch: {remedy} use a network without "
                "normalisation (Fixup)"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{kind} {name!r} is in training mode, so outputs are random: call {called}.eval()")
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            for setting in ("max_norm", "scale_grad_by_freq"):
                if getattr(module, setting):
                    raise ValueError(
                        f"{kind} {name!r} has {setting}, under which its gradient is not the derivative of its outputs: "
                        "leave it out"
                    )


def _check_numbers(model: nn.Module, inputs: Tensor) -> None:
    weights = trainable_parameters(model)
    for name, parameter in weights.items():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"parameter {name!r} holds NaN or infinite values: train or load the network again")
        if parameter.is_complex():
            raise ValueError(
                f"parameter {name!r} is complex: hold it as torch.view_as_real gives it, and take torch.view_as_complex in forward"
            )
        if parameter.dtype not in ROW_TYPES:
            raise ValueError(
                f"the network is {parameter.dtype}: estimates need float32 or float64 rows; convert it with .float()"
            )
    dtype = next(iter(weights.values())).dtype
    if inputs.is_floating_point() and inputs.dtype != dtype:
        raise ValueError(f"the inputs are {inputs.dtype} but the network is {dtype}: convert one of them")


def _different(inputs: Tensor) -> list[int]:
    """The first input and up to three that differ from it."""
    differing = (inputs != inputs[:1]).reshape(len(inputs), -1).any(1).nonzero().squeeze(1)
    return [0, *(int(differing[place]) for place in _spread(len(differing), 3))]


def _spread(count: int, most: int) -> list[int]:
    """Up to ``most`` indices below ``count``, far apart: neighbours may be of one length, or of one class."""
    return torch.linspace(0, max(0, count - 1), min(most, count), device="cpu").long().tolist()
