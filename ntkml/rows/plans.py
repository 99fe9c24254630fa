"""How every parameter gets its rows: from a captured layer, or exact ones (:mod:`ntkml.rows.exact`).

Nothing is trusted: on a few inputs the captured rows are held against autograd's own gradient, a module with a parameter
whose rows differ, or that sees the inputs in another order, takes exact rows, and those are held against the same gradient.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ntkml.layers import computes_as_known
from ntkml.layers.layer_rows import qualified
from ntkml.layers.uses import unsupported
from ntkml.parameters import is_weight, trainable_parameters
from ntkml.rows.exact import ExactForward, RowPlan
from ntkml.rows.looks import Look, Looks

Setting: TypeAlias = tuple[int, str]

_LOG = logging.getLogger("ntkml")
#: From here on, torch's index of no padding (-1) without its sign.
_NO_PADDING = 2**63
_PLAIN = frozenset({bool, int, float, str, type(None)})
#: Networks whose exact rows the log has named.
_NAMED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def plan_rows(
    model: nn.Module, few: Tensor, looks: Looks, reasons: Mapping[str, str], problems: Mapping[str, str]
) -> RowPlan:
    """The plan of a network, from looks at a few inputs.

    Args:
        reasons: parameters known to need exact rows, from :func:`not_captured`.
        problems: what the looks found, by layer.

    Raises:
        ValueError: the outputs do not depend on a parameter, or its exact rows are not autograd's gradient either.
    """
    exact = _exact(looks.together, trainable_parameters(model), reasons, problems)
    if not exact:
        return RowPlan()
    plan = _route(model, few, exact, looks)
    _say(model, plan)
    return plan


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made for. ``settings``: plain attributes of modules that forward passes leave alone."""

    plan: RowPlan
    layout: list[tuple[object, ...]]
    settings: Mapping[Setting, object]
    counted: frozenset[Setting]

    @classmethod
    def by(cls, make: Callable[[], RowPlan], model: nn.Module, before: Planned | None = None) -> Planned:
        """The plan that ``make`` gives. What has changed meanwhile is a count or a state of the network's own, of any later plan too."""
        found, now = layout(model), settings(model)
        plan = make()
        after = settings(model)
        counted = {key for key in now.keys() | after.keys() if now.get(key, ...) != after.get(key, ...)}
        counted |= before.counted if before is not None else set()
        return cls(plan, found, _without(now, counted), frozenset(counted))

    def holds(self, model: nn.Module) -> bool:
        """Whether all of it is still the same."""
        return self.layout == layout(model) and self.settings == _without(settings(model), self.counted)


def settings(model: nn.Module) -> dict[Setting, object]:
    """Attributes of modules that a forward pass may branch on, by the module's place and their name."""
    return {
        (place, name): value
        for place, module in enumerate(model.modules())
        for name, value in vars(module).items()
        if type(value) in _PLAIN
    }


def _without(found: Mapping[Setting, object], names: AbstractSet[Setting]) -> dict[Setting, object]:
    return {key: value for key, value in found.items() if key not in names} if names else dict(found)


def layout(model: nn.Module) -> list[tuple[object, ...]]:
    """What a plan was made for: modules, types of parameters, and what hooks or an own ``forward`` make of them. Costs next to nothing.

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
        types = tuple(parameter.dtype for parameter in module._parameters.values() if parameter is not None)
        found.append((module, types, vars(module).get("forward"), *(tuple(of_one.values()) for of_one in hooks)))
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


def _exact(
    batch: Look, weights: Mapping[str, nn.Parameter], reasons: Mapping[str, str], problems: Mapping[str, str]
) -> dict[str, str]:
    """Every parameter of a module with one whose captured rows are missing or wrong, and why.

    A use outside the layer is found in the graph as well as in the numbers, which say nothing where gradients vanish, as
    behind a head that starts at zero.

    Raises:
        ValueError: the outputs do not depend on a parameter.
    """
    sums, uses = _sums_of_rows(batch), _uses(batch.captured.outputs, weights)
    wrong: dict[str, str] = {}
    for name in weights:
        layer = name.rpartition(".")[0]
        if uses[name] == 0:
            raise ValueError(f"the outputs do not depend on parameter {name!r}: freeze it with requires_grad_(False)")
        if name in reasons:
            wrong[layer] = reasons[name]
        elif layer in problems:
            wrong[layer] = problems[layer]
        elif name not in sums:
            wrong.setdefault(layer, "it is used without calling its layer")
        elif uses[name] > 1 or not _agree(sums[name], batch, name):
            wrong[layer] = "it is also used outside its layer"
    return {name: wrong[name.rpartition(".")[0]] for name in weights if name.rpartition(".")[0] in wrong}


def _root(outputs: Tensor) -> Node:
    assert outputs.grad_fn is not None  # a survey refuses outputs without a graph
    return outputs.grad_fn


def _nodes(start: Node) -> Iterator[Node]:
    """The operations of the graph behind one, and its leaves as often as they are used."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        yield node
        for before, _ in node.next_functions:
            if before is not None and (hasattr(before, "variable") or before not in seen):
                seen.add(before)
                waiting.append(before)


def _uses(outputs: Tensor, weights: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """How many operations of the graph behind the outputs take a parameter."""
    names = {id(weight): name for name, weight in weights.items()}
    counts = dict.fromkeys(weights, 0)
    for node in _nodes(_root(outputs)):
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            counts[name] += 1
    return counts


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


def _route(model: nn.Module, few: Tensor, exact: Mapping[str, str], looks: Looks) -> RowPlan:
    """Rows by vmap where those are autograd's gradient, else input by input.

    Raises:
        ValueError: neither are.
    """
    forgetful = _vmap_forgets_padding(looks.together.captured.outputs, [model.get_parameter(name) for name in exact])
    cotangents = torch.cat([look.cotangents for look in looks.alone])
    for vectorised in (False,) if forgetful else (True, False):
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
        wrong = [
            name
            for name in exact
            if not all(_agree(row, look, name) for row, look in zip(rows[name], looks.alone, strict=True))
        ]
        if not wrong:
            return plan
    raise ValueError(
        f"no rows of parameter {wrong[0]!r} agree with autograd's gradient, which is random or cancels but for rounding: call "
        "model.eval(), take float64 (model.double()), or freeze it with requires_grad_(False)"
    )


def _vmap_forgets_padding(outputs: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether one of the parameters is looked up, or what it is made into, by an embedding with a padding index.

    vmap forgets that index of an embedding that it has several copies of.
    """
    copied = {id(parameter) for parameter in parameters}
    embeddings = (node for node in _nodes(_root(outputs)) if 0 <= getattr(node, "_saved_padding_idx", -1) < _NO_PADDING)
    return any(id(getattr(node, "variable", None)) in copied for one in embeddings for node in _nodes(one))


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
