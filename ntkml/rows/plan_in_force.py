"""A plan, and how it is seen that a network is no longer the one that it was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from ntkml.rows.exact import RowPlan

#: An attribute of a module, by the module's place in the network and its own name.
Setting: TypeAlias = tuple[int, str]

_PLAIN = frozenset({bool, int, float, str, type(None)})


@dataclass(frozen=True)
class PlanInForce:
    """A plan, and what it was made for. ``settings``: plain attributes of modules that forward passes leave alone."""

    plan: RowPlan
    layout: list[tuple[object, ...]]
    settings: Mapping[Setting, object]
    counted: frozenset[Setting]

    @classmethod
    def by(cls, make: Callable[[], RowPlan], model: nn.Module, before: PlanInForce | None) -> PlanInForce:
        """The plan that ``make`` gives. What has changed meanwhile is a count or a state of the network's own, of any later plan too."""
        found, now = _layout(model), _settings(model)
        plan = make()
        after = _settings(model)
        counted = {key for key in now.keys() | after.keys() if now.get(key, ...) != after.get(key, ...)}
        counted |= before.counted if before is not None else set()
        return cls(plan, found, _without(now, counted), frozenset(counted))

    def holds(self, model: nn.Module) -> bool:
        """Whether all of it is still the same."""
        return self.layout == _layout(model) and self.settings == _without(_settings(model), self.counted)


def _settings(model: nn.Module) -> dict[Setting, object]:
    """Attributes of modules that a forward pass may branch on, by the module's place and their name."""
    return {
        (place, name): value
        for place, module in enumerate(model.modules())
        for name, value in vars(module).items()
        if type(value) in _PLAIN
    }


def _without(found: Mapping[Setting, object], names: AbstractSet[Setting]) -> dict[Setting, object]:
    return {key: value for key, value in found.items() if key not in names}


def _layout(model: nn.Module) -> list[tuple[object, ...]]:
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
