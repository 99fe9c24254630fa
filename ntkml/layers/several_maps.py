"""Layers that are several linear maps, each with parameters of its own: what is asked of one is asked of its maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkml.layers.factors import Factor, FactorGradients
from ntkml.layers.kronecker import KroneckerPart
from ntkml.layers.positions import Positions


@dataclass(frozen=True)
class RowsOfMaps:
    """The rows of such a layer; see :class:`~ntkml.layers.layer_rows.LayerRows`."""

    maps: Sequence[Positions]

    @property
    def counts(self) -> tuple[int, int]:
        return self.maps[0].counts

    def rows(self) -> dict[str, Tensor]:
        return {key: row for each in self.maps for key, row in each.rows().items()}

    def row(self, key: str) -> Tensor:
        return self._owner(key).row(key)

    def gram(self, key: str) -> Tensor:
        return self._owner(key).gram(key)

    def _owner(self, key: str) -> Positions:
        return next(each for each in self.maps if key in (each.weight, each.bias))

    def pair(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([each.pair(gradients) for each in self.maps]).sum()

    def squares(self) -> dict[str, Tensor]:
        return {key: sums for each in self.maps for key, sums in each.squares().items()}

    def direct_is_cheaper(self) -> bool:
        return all(each.direct_is_cheaper() for each in self.maps)

    def rows_are_larger(self) -> bool:
        return all(each.rows_are_larger() for each in self.maps)

    def joined(self, others: Sequence[RowsOfMaps]) -> RowsOfMaps | None:
        found = [first.joined(rest) for first, *rest in zip(self.maps, *(other.maps for other in others), strict=True)]
        whole = [each for each in found if each is not None]
        return RowsOfMaps(whole) if len(whole) == len(found) else None

    def reduced(self) -> FactorsOfMaps:
        return FactorsOfMaps([each.reduced() for each in self.maps])


@dataclass(frozen=True)
class FactorsOfMaps:
    """Their Kronecker factors; see :class:`~ntkml.layers.kronecker.KroneckerPart`."""

    maps: Sequence[KroneckerPart]

    @property
    def num_positions(self) -> int | None:
        return self.maps[0].num_positions

    def factors(self, spectra_only: bool, moments: bool, num_rows: int | None = None) -> dict[str, tuple[Factor, ...]]:
        return {key: made for each in self.maps for key, made in each.factors(spectra_only, moments, num_rows).items()}

    def pair(self, gradients: FactorGradients, num_inputs: int) -> Tensor:
        return torch.stack([each.pair(gradients, num_inputs) for each in self.maps]).sum()

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> FactorsOfMaps:
        return FactorsOfMaps([each.cut(inputs, outputs, factor) for each in self.maps])
