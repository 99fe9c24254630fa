"""How every parameter gets its rows: from a captured layer, or exact ones (:mod:`ntkml.rows.exact`).

Nothing is trusted: on a few inputs the captured rows are held against autograd's own gradient, a module with a parameter
whose rows differ, or that sees the inputs in another order, takes exact rows, and those are held against the same gradient.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ntkml.layers import computes_as_known
from ntkml.layers.calls import unsupported
from ntkml.layers.layer_rows import layer_of, qualified
from ntkml.parameters import is_weight, trainable_parameters
from ntkml.rows.exact import ExactForward, RowPlan
from ntkml.rows.graphs import uses_of, vmap_forgets_padding
from ntkml.rows.looks import Look, Looks

_LOG = logging.getLogger("ntkml")
#: Networks whose exact rows the log has named.
_NAMED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def plan_rows(model: nn.Module, few: Tensor, looks: Looks, known: RowPlan, problems: Mapping[str, str]) -> RowPlan:
    """The plan of a network, from looks at a few inputs.

    Args:
        known: what the looks were made with; its exact rows are those of parameters from :func:`not_captured`.
        problems: what the looks found, by layer.

    Raises:
        ValueError: the outputs do not depend on a parameter, or its exact rows are not autograd's gradient either.
    """
    exact = _exact(looks.together, trainable_parameters(model), known.exact, problems)
    if not exact:
        return replace(known, exact={})
    plan = _route(model, few, replace(known, exact=exact), looks)
    _say(model, plan)
    return plan


def not_captured(model: nn.Module) -> dict[str, str]:
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
        elif not computes_as_known(module):
            why = f"{type(module).__name__} is not among the layers that are captured"
        else:
            why = unsupported(module)
        if why is not None:
            found.update({full: why for full in own if full in weights})
    return found


def _exact(
    batch: Look, weights: Mapping[str, nn.Parameter], reasons: Mapping[str, str], problems: Mapping[str, str]
) -> dict[str, str]:
    """Every parameter of a module with one whose captured rows are missing or wrong, and why.

    A use outside the layer is found in the graph as well as in the numbers, which say nothing where gradients vanish, as
    behind a head that starts at zero.

    Raises:
        ValueError: the outputs do not depend on a parameter.
    """
    sums, uses, captured = _sums_of_rows(batch), uses_of(batch.captured.outputs, weights), batch.captured.parameters()
    wrong: dict[str, str] = {}
    for name in weights:
        layer = layer_of(name)
        if uses[name] == 0:
            raise ValueError(
                f"the outputs do not depend on parameter {name!r}: freeze it with requires_grad_(False); if only other inputs than "
                "those looked at lead to it, as to an expert, compute it for all and mask what is not for them (torch.where)"
            )
        if name in reasons:
            wrong[layer] = reasons[name]
        elif layer in problems:
            wrong[layer] = problems[layer]
        elif name not in sums:
            wrong.setdefault(layer, "it is used without calling its layer")
        elif uses[name] > captured[name].num_calls or not _agree(sums[name], batch, name):
            wrong[layer] = "it is also used outside its layer"
    return {name: wrong[layer_of(name)] for name in weights if layer_of(name) in wrong}


def _sums_of_rows(look: Look) -> dict[str, Tensor]:
    """The captured rows for the look's cotangents, summed over its inputs, flat."""
    found = {}
    for layer, pulled in zip(look.captured.layers, look.captured.gradients(look.cotangents), strict=True):
        gradients = [g.unsqueeze(1) for g in pulled if g is not None]
        if len(gradients) == len(pulled):
            own = layer.rows(gradients).rows()
            found.update({qualified(layer.name, key): row[:, 0].sum(0).detach() for key, row in own.items()})
    return found


def _agree(row: Tensor, look: Look, name: str) -> bool:
    """Whether a row is autograd's gradient but for rounding; of a gradient that is no number, nothing is known.

    A gradient that cancels may lie below the rounding of the largest entry in any parameter.
    """
    exact = look.gradients[name]
    error = (row - exact).abs().max()
    return bool(error <= 1e-3 * exact.abs().max() + 1e-6 * max(1.0, look.largest)) or not bool(
        torch.isfinite(exact).all()
    )


def _route(model: nn.Module, few: Tensor, plan: RowPlan, looks: Looks) -> RowPlan:
    """Rows by vmap where those are autograd's gradient, else input by input.

    Raises:
        ValueError: neither are.
    """
    forgetful = vmap_forgets_padding(
        looks.together.captured.outputs, [model.get_parameter(name) for name in plan.exact]
    )
    cotangents = torch.cat([look.cotangents for look in looks.alone])
    for vectorised in (False,) if forgetful else (True, False):
        plan = replace(plan, vectorised=vectorised)
        try:
            rows = ExactForward(model, plan, few, num_views=1, differentiable=False).pull_back(cotangents)
        except Exception as error:
            # A network may do anything that vmap does not know, such as branch on a value, and its own checks may raise anything.
            # Nothing wrong passes: no plan was made, and the next one's rows are held against autograd's gradient below.
            if not vectorised:
                raise
            _LOG.debug("no exact rows by vmap, trying input by input: %r", error)
            continue
        wrong = [
            name
            for name in plan.exact
            if not all(_agree(row.flatten(), look, name) for row, look in zip(rows[name], looks.alone, strict=True))
        ]
        if not wrong:
            return plan
    raise ValueError(
        f"no rows of parameter {wrong[0]!r} agree with autograd's gradient, which is random or cancels but for rounding: call "
        "model.eval(), take float64 (model.double()), or freeze it with requires_grad_(False)"
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
