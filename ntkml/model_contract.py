"""What a network must be for its rows to be exact, checked on the network itself and not only on its types.

The check also decides which parameters are captured and which take exact rows (:class:`~ntkml.exact_rows.RowPlan`): rows
of a captured layer that are not autograd's gradient are not used.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ntkml.capture import Capture, is_weight, survey, trainable_parameters
from ntkml.exact_rows import ExactForward, RowPlan
from ntkml.layers import LAYER_TYPES
from ntkml.layers.layer_rows import qualified
from ntkml.layers.uses import unsupported

_LOG = logging.getLogger("ntkml")
#: Networks whose exact rows the log has named.
_NAMED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_model(model: nn.Module, inputs: Tensor) -> RowPlan:
    """Refuse a model whose rows would be wrong, by name and with what to do; say how the others get theirs.

    Beside the types, two identities are checked on a few inputs: the outputs of an input do not depend on the rest of its
    batch, and the rows are autograd's own gradient of the parameters. A module with a parameter whose captured rows are not
    (a weight used outside its layer, a layer used twice) takes exact rows, and those are held against the same gradient.

    Raises:
        ValueError: BatchNorm or Dropout in training mode, outputs that depend on the batch or are random, a parameter that
            the outputs do not depend on, or one whose exact rows are not autograd's gradient either.
    """
    _check_modes(model)
    _check_numbers(model, inputs)
    few = inputs[_two_different(inputs)].detach()
    shared = _not_captured(model)
    captured, problems = survey(model, few, RowPlan(shared))
    _check_coupling(model, few, captured.outputs)
    truth = _autograd_rows(model, captured)
    plan = _planned(model, shared, problems, captured, truth)
    if plan.exact:
        plan = _with_exact_rows(model, plan, few, truth, captured.outputs)
        _say(model, plan)
    return plan


def _check_modes(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{kind} {name!r} is in training mode, so an output depends on the whole batch: call model.eval(), or "
                "use a network without normalisation (Fixup)"
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


def _not_captured(model: nn.Module) -> dict[str, str]:
    """Parameters of modules that are no captured layers, and those of modules that share a parameter, with the reason."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            users.setdefault(id(parameter), []).append(qualified(name, key))
    weights = trainable_parameters(model)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        own = {qualified(name, key): p for key, p in module.named_parameters(recurse=False) if is_weight(p)}
        shared = [users[id(p)] for p in own.values() if len(users[id(p)]) > 1]
        why = None
        if shared:
            why = f"{' and '.join(shared[0])} are one parameter"
        elif not isinstance(module, LAYER_TYPES):
            why = f"{type(module).__name__} is not among the layers that are captured"
        else:
            why = unsupported(module)
        if why is not None:
            found.update({full: why for full in own if full in weights})
    return found


def _probes(outputs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """One cotangent for every input, which weighs all its outputs."""
    for index in range(len(outputs)):
        probe = torch.zeros_like(outputs).detach()
        probe[index] = torch.linspace(1.0, 2.0, outputs.shape[1])
        yield index, probe


def _autograd_rows(model: nn.Module, captured: Capture) -> list[dict[str, Tensor]]:
    """Autograd's gradient of every parameter, input by input.

    Raises:
        ValueError: the outputs do not depend on a parameter.
    """
    weights = trainable_parameters(model)
    rows = []
    for _, probe in _probes(captured.outputs):
        gradients = torch.autograd.grad(
            captured.outputs, list(weights.values()), probe, retain_graph=True, allow_unused=True
        )
        found = dict(zip(weights, gradients, strict=True))
        for name, gradient in found.items():
            if gradient is None:
                raise ValueError(
                    f"the outputs do not depend on parameter {name!r}: freeze it with requires_grad_(False)"
                )
        rows.append({name: (g.to_dense() if g.is_sparse else g).reshape(-1) for name, g in found.items()})
    return rows


def _planned(
    model: nn.Module,
    shared: Mapping[str, str],
    problems: Mapping[str, str],
    captured: Capture,
    truth: list[dict[str, Tensor]],
) -> RowPlan:
    """Exact rows for every module with a parameter whose captured rows are missing or wrong."""
    rows = _captured_rows(captured)
    wrong: dict[str, str] = {}
    for name in truth[0]:
        layer = name.rpartition(".")[0]
        if name in shared:
            wrong[layer] = shared[name]
        elif layer in problems:
            wrong[layer] = problems[layer]
        elif any(name not in found for found in rows):
            wrong.setdefault(layer, "its layer is not called")
        elif not all(_agree(found[name], exact[name]) for found, exact in zip(rows, truth, strict=True)):
            wrong[layer] = "it is also used outside its layer"
    exact = {name: wrong[name.rpartition(".")[0]] for name in truth[0] if name.rpartition(".")[0] in wrong}
    return RowPlan(exact)


def _captured_rows(captured: Capture) -> list[dict[str, Tensor]]:
    """The captured rows of every input for its probe."""
    rows = []
    for index, probe in _probes(captured.outputs):
        found = {}
        for layer, pulled in zip(captured.layers, captured.gradients(probe), strict=True):
            gradients = [g.unsqueeze(1) for g in pulled if g is not None]
            if len(gradients) == len(pulled):
                own = layer.rows(gradients).rows()
                found.update({qualified(layer.name, key): row[index, 0].detach() for key, row in own.items()})
        rows.append(found)
    return rows


def _agree(row: Tensor, exact: Tensor) -> bool:
    """Whether a row is autograd's gradient; of a gradient that is no number, nothing is known."""
    error = (row - exact).abs().max()
    return bool(error <= 1e-3 * exact.abs().max() + 1e-6) or not bool(torch.isfinite(exact).all())


def _with_exact_rows(
    model: nn.Module, plan: RowPlan, few: Tensor, truth: list[dict[str, Tensor]], outputs: Tensor
) -> RowPlan:
    """The plan with rows by vmap where those are autograd's gradient, else input by input.

    Raises:
        ValueError: neither are.
    """
    # vmap forgets the padding index of an embedding that it has several copies of.
    padded = any(isinstance(module, nn.Embedding) and module.padding_idx is not None for module in model.modules())
    cotangents = torch.stack([probe for _, probe in _probes(outputs)]).sum(0)
    for vectorised in (False,) if padded else (True, False):
        tried = replace(plan, vectorised=vectorised)
        try:
            rows = ExactForward(model, tried, few, num_views=1, differentiable=False).pull_back(cotangents)
        except RuntimeError:  # an operation without a batching rule
            if not vectorised:
                raise
            continue
        wrong = [name for name in rows if not all(_agree(rows[name][i], exact[name]) for i, exact in enumerate(truth))]
        if not wrong:
            return tried
    raise ValueError(
        f"parameter {wrong[0]!r} has a gradient that changes with the other inputs of a batch, or that is random: call model.eval(), "
        "or freeze it with requires_grad_(False)"
    )


def _say(model: nn.Module, plan: RowPlan) -> None:
    """One line, once for every network."""
    if model in _NAMED:
        return
    _NAMED.add(model)
    by_reason: dict[str, list[str]] = {}
    for name, why in plan.exact.items():
        by_reason.setdefault(why, []).append(name)
    _LOG.warning(
        "exact rows (%s), slower than captured ones, are used for %s",
        "by vmap" if plan.vectorised else "input by input",
        "; ".join(f"{', '.join(names)} ({why})" for why, names in by_reason.items()),
    )
