"""How every parameter gets its rows: from a captured layer, or exact ones (:mod:`ntkml.rows.exact`).

Nothing is trusted: on a few inputs the captured rows are held against autograd's own gradient, a module with a parameter
whose rows differ takes exact rows, and those are held against the same gradient.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ntkml.layers import computes_as_known
from ntkml.layers.layer_rows import qualified
from ntkml.layers.uses import unsupported
from ntkml.parameters import is_weight, trainable_parameters
from ntkml.rows.capture import Capture
from ntkml.rows.exact import ExactForward, RowPlan

_LOG = logging.getLogger("ntkml")
#: Networks whose exact rows the log has named.
_NAMED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def plan_rows(
    model: nn.Module, few: Tensor, captured: Capture, reasons: Mapping[str, str], problems: Mapping[str, str]
) -> RowPlan:
    """The plan of a network, from the survey of a few inputs (see :func:`ntkml.rows.capture.survey`).

    Args:
        reasons: parameters known to need exact rows, from :func:`not_captured`.
        problems: what the survey found, by layer.

    Raises:
        ValueError: the outputs do not depend on a parameter, or its exact rows are not autograd's gradient either.
    """
    truth = _autograd_rows(model, captured)
    exact = _exact(captured, trainable_parameters(model), reasons, problems, truth)
    if not exact:
        return RowPlan()
    plan = _route(model, few, exact, truth, captured.outputs)
    _say(model, plan)
    return plan


def layout(model: nn.Module) -> list[tuple[object, ...]]:
    """What a plan was made for: the modules, and what hooks or an own ``forward`` make of them. Costs next to nothing.

    A plan holds as long as this is the same; a hook that was added since would change rows without a word.
    """
    of_all = nn.modules.module
    found: list[tuple[object, ...]] = [
        (tuple(of_all._global_forward_pre_hooks.values()), tuple(of_all._global_forward_hooks.values()))
    ]
    for module in model.modules():
        hooks = (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        found.append((module, vars(module).get("forward"), *(tuple(of_one.values()) for of_one in hooks)))
    return found


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


def _exact(
    captured: Capture,
    weights: Mapping[str, nn.Parameter],
    reasons: Mapping[str, str],
    problems: Mapping[str, str],
    truth: list[dict[str, Tensor]],
) -> dict[str, str]:
    """Every parameter of a module with one whose captured rows are missing or wrong, and why.

    A use outside the layer is found in the graph as well as in the numbers, which say nothing where gradients vanish, as
    behind a head that starts at zero.
    """
    rows = _captured_rows(captured)
    scale = max(float(exact.abs().max()) for found in truth for exact in found.values())
    uses = _uses(captured.outputs, weights)
    wrong: dict[str, str] = {}
    for name in weights:
        layer = name.rpartition(".")[0]
        if name in reasons:
            wrong[layer] = reasons[name]
        elif layer in problems:
            wrong[layer] = problems[layer]
        elif any(name not in found for found in rows):
            wrong.setdefault(layer, "it is used without calling its layer")
        elif uses[name] > 1 or not all(_agree(r[name], t[name], scale) for r, t in zip(rows, truth, strict=True)):
            wrong[layer] = "it is also used outside its layer"
    return {name: wrong[name.rpartition(".")[0]] for name in weights if name.rpartition(".")[0] in wrong}


def _uses(outputs: Tensor, weights: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """How many operations of the graph behind the outputs take a parameter."""
    names = {id(weight): name for name, weight in weights.items()}
    counts = dict.fromkeys(weights, 0)
    seen, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions if node is not None else ():
            if before is None:
                continue
            name = names.get(id(getattr(before, "variable", None)))
            if name is not None:
                counts[name] += 1
            elif before not in seen:
                seen.add(before)
                waiting.append(before)
    return counts


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


def _agree(row: Tensor, exact: Tensor, scale: float) -> bool:
    """Whether a row is autograd's gradient but for rounding; of a gradient that is no number, nothing is known.

    ``scale``: the largest entry of the gradient in any parameter, below whose rounding a gradient that cancels may lie.
    """
    error = (row - exact).abs().max()
    return bool(error <= 1e-3 * exact.abs().max() + 1e-6 * max(1.0, scale)) or not bool(torch.isfinite(exact).all())


def _route(
    model: nn.Module, few: Tensor, exact: Mapping[str, str], truth: list[dict[str, Tensor]], outputs: Tensor
) -> RowPlan:
    """Rows by vmap where those are autograd's gradient, else input by input.

    Raises:
        ValueError: neither are.
    """
    # vmap forgets the padding index of an embedding that it has several copies of.
    padded = any(isinstance(module, nn.Embedding) and module.padding_idx is not None for module in model.modules())
    cotangents = torch.stack([probe for _, probe in _probes(outputs)]).sum(0)
    scale = max(float(row.abs().max()) for found in truth for row in found.values())
    for vectorised in (False,) if padded else (True, False):
        plan = RowPlan(exact, vectorised)
        try:
            rows = ExactForward(model, plan, few, num_views=1, differentiable=False).pull_back(cotangents)
        except Exception as error:
            # A network may do anything that vmap does not know, such as branch on a value, and its own checks may raise anything.
            # Nothing wrong passes: no plan was made, and the next one's rows are held against autograd's gradient below.
            if not vectorised:
                raise
            _LOG.debug("no exact rows by vmap, trying input by input: %r", error)
            continue
        wrong = [n for n in exact if not all(_agree(rows[n][i], t[n], scale) for i, t in enumerate(truth))]
        if not wrong:
            return plan
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
