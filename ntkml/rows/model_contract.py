"""What a network must be for its rows to be exact, checked on the network itself and not only on its types.

The check also gives the plan by which every parameter gets its rows (:mod:`ntkml.rows.plans`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ntkml.machine.full_precision import full_precision
from ntkml.parameters import trainable_parameters
from ntkml.rows.capture import survey
from ntkml.rows.exact import RowPlan
from ntkml.rows.plans import not_captured, plan_rows


@full_precision()
def check_model(model: nn.Module, inputs: Tensor) -> RowPlan:
    """Refuse a model whose rows would be wrong, by name and with what to do; say how the others get theirs.

    Beside the types, two identities are checked on a few inputs: the outputs of an input do not depend on the rest of its
    batch, and the rows are autograd's own gradient of the parameters. A module with a parameter whose captured rows are not
    (a weight used outside its layer, a layer used twice) takes exact rows, and those are held against the same gradient.

    Raises:
        ValueError: a scripted network, BatchNorm or Dropout in training mode, outputs that depend on the batch or are random,
            a parameter that the outputs do not depend on, or one whose exact rows are not autograd's gradient either.
    """
    if any(isinstance(module, torch.jit.RecursiveScriptModule) for module in model.modules()):
        raise ValueError(
            "torch.jit.script hides the layers of a network: make the objective from the module that was scripted"
        )
    check_modes(model)
    _check_numbers(model, inputs)
    few = inputs[_two_different(inputs)].detach()
    reasons = not_captured(model)
    captured, problems = survey(model, few, RowPlan(reasons))
    _check_coupling(model, few, captured.outputs)
    return plan_rows(model, few, captured, reasons, problems)


def check_modes(model: nn.Module) -> None:
    """What of :func:`check_model` may change between two estimates without a word, and costs nothing to see."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            why, remedy = "is in training mode", "call model.eval(), or"
            if not module.training:
                why, remedy = "keeps no running statistics", "keep them (track_running_stats=True), or"
            raise ValueError(
                f"{kind} {name!r} {why}, so an output depends on the whole batch: {remedy} use a network without "
                "normalisation (Fixup)"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{kind} {name!r} is in training mode, so outputs are random: call model.eval()")
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
    dtype = next(iter(weights.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the network is {dtype}: estimates need float32 or float64 rows; convert it with .float()")
    if inputs.is_floating_point() and inputs.dtype != dtype:
        raise ValueError(f"the inputs are {inputs.dtype} but the network is {dtype}: convert one of them")


def _two_different(inputs: Tensor) -> list[int]:
    differing = (inputs != inputs[:1]).reshape(len(inputs), -1).any(1).nonzero()
    return [0, int(differing[0])] if len(differing) else [0]


def _check_coupling(model: nn.Module, few: Tensor, outputs: Tensor) -> None:
    with torch.no_grad():
        alone = model(few[:1].clone())
    together = outputs[:1].detach()
    scale = together.abs().max().clamp_min(1.0)
    if not bool(((alone - together).abs() <= 1e-3 * scale).all()) and bool(torch.isfinite(alone).all()):
        raise ValueError(
            "the outputs of an input depend on the other inputs of its batch (or are random): call model.eval() or remove such layers"
        )
