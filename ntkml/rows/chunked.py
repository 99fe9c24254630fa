"""The rows of one block that is captured in chunks of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ntkml.layers.factors import Factor, added, averaged, factor_spectrum
from ntkml.layers.kronecker import KroneckerPart
from ntkml.layers.layer_rows import LayerRows, layer_of, parted, qualified
from ntkml.linalg import gram
from ntkml.rows.block import Groups, Kept, Precisions, merge_factors, merge_squares, sum_of_grams

#: Makes the chunks of a block anew, each as the rows of its layers: all columns of the factor together, or some at a time.
Chunks = Callable[[], Iterable[Iterable[Mapping[str, LayerRows]]]]


class ChunkedRows:
    """Rows of one block captured in chunks of its inputs: only what the structure needs outlives a chunk.

    Sums of Kronecker factors or of squares do not grow with the block. Explicit rows, b x P values, are those of one
    group of parameter tensors at a time: where ``groups`` are several, asking for a tensor of another group captures the
    chunks again. Layers whose Grams cost less by the direct route keep their inputs and gradients until rows are asked for.
    """

    def __init__(
        self,
        chunks: Chunks,
        shapes: Mapping[str, torch.Size],
        kept: Kept,
        groups: Groups,
        num_rows: int,
        values_only: bool = False,
        adjoint_follows: bool = False,
    ):
        """``num_rows``: b, of all chunks together.

        ``values_only``: no gradient in the rows will be asked for, and factors are those of one chunk. Then only eigenvalues are
        needed of Kronecker factors, and the explicit rows of a layer are made for its Gram and dropped, where they are larger
        than what they are made from.
        """
        assert not (values_only and adjoint_follows)
        self.adjoint_follows = adjoint_follows
        self.shapes, self.groups = shapes, groups
        self.num_inputs, self.num_rows = 0, num_rows
        self._chunks = chunks
        self._values_only = values_only
        self._rows: dict[str, Tensor] = {}
        self._kept: dict[str, list[LayerRows]] = {}
        self._forgotten: set[str] = set()
        self._factors: dict[str, tuple[Factor, ...]] = {}
        self._positions: dict[str, int | None] = {}
        self._squares: dict[str, Tensor] = {}
        if kept == "factors":
            self._load(self._add_factors)
        elif kept == "squares":
            self._load(self._add_squares)
        else:
            self._load_group(groups[0])

    def _load(self, add: Callable[[Mapping[str, LayerRows], bool], None]) -> None:
        """``add`` takes the rows of some columns of a chunk, and whether they are the chunk's first ones."""
        self.num_inputs = self._loaded = 0
        for chunk in self._chunks():
            inputs = 0
            for layers in chunk:
                first, (inputs, columns) = inputs == 0, next(iter(layers.values())).counts
                add(layers, first)
                self._loaded += inputs * columns
                del layers  # or they would be alive beside the next ones
            self.num_inputs += inputs

    def _load_group(self, names: tuple[str, ...]) -> None:
        self._rows, self._kept, self._forgotten = {}, {}, set()
        loaded: dict[str, Tensor] = {}
        kept: dict[str, list[LayerRows]] = {}
        self._load(lambda chunk, first: self._add_rows(chunk, set(names), loaded, kept))
        self._rows, self._kept = loaded, kept  # whole, or not at all

    def _add_rows(
        self,
        chunk: Mapping[str, LayerRows],
        names: set[str],
        loaded: dict[str, Tensor],
        kept: dict[str, list[LayerRows]],
    ) -> None:
        undecided = self.num_inputs == 0
        for name, layer in chunk.items():
            wanted = any(layer_of(tensor) == name for tensor in names)
            # The first chunk decides for all of them; what is kept for values does not wait for its group.
            if name in kept or (undecided and (wanted or self._values_only) and self._is_kept(layer)):
                kept.setdefault(name, []).append(layer)
            elif wanted:
                for key, rows in layer.rows().items():
                    self._place(loaded, qualified(name, key), rows.flatten(0, 1))

    def _place(self, loaded: dict[str, Tensor], name: str, rows: Tensor) -> None:
        """Rows of one chunk into those of the block: joining them at the end would hold a tensor's rows twice."""
        if len(rows) == self.num_rows:
            loaded[name] = rows
            return
        if name not in loaded:
            loaded[name] = rows.new_empty(self.num_rows, rows.shape[1])
        loaded[name][self._loaded : self._loaded + len(rows)] = rows

    def _is_kept(self, layer: LayerRows) -> bool:
        return layer.direct_is_cheaper() or (self._values_only and layer.rows_are_larger())

    def _add_factors(self, chunk: Mapping[str, LayerRows], first: bool) -> None:
        """Scatters add up; second moments are means over inputs and are weighted by how many each chunk holds.

        A weight and its bias have the same scatter, one tensor, to which a chunk's is added once.
        Where values are all that is wanted, a second moment, the largest of what KFAC makes, lives until its eigenvalues are known.
        """
        inputs, _ = next(iter(chunk.values())).counts
        share = inputs / (self.num_inputs + inputs)
        for layer, rows in chunk.items():
            part = rows.reduced()
            self._check_positions(layer, part)
            made = merge_factors({layer: part}, self.num_rows, self._values_only, moments=first)
            summed: dict[int, Factor] = {}
            for name, (scatter, *second_moment) in made.items():
                if self._values_only:
                    second_moment = [factor_spectrum(moment, name) for moment in second_moment]
                if name not in self._factors:
                    self._factors[name] = (scatter, *second_moment)
                    continue
                old_scatter, *old_moment = self._factors[name]
                if id(old_scatter) not in summed:
                    summed[id(old_scatter)] = added(old_scatter, scatter)
                if first:
                    both = zip(old_moment, second_moment, strict=True)
                    old_moment = [averaged(old, new, share) for old, new in both]
                self._factors[name] = (summed[id(old_scatter)], *old_moment)

    def _check_positions(self, layer: str, part: KroneckerPart) -> None:
        """Factors are means over positions, of which a network that cuts its batch to the longest sequence makes others in every chunk."""
        if self._positions.setdefault(layer, part.num_positions) != part.num_positions:
            raise ValueError(
                f"layer {layer!r} has {self._positions[layer]} positions in one chunk of a block and {part.num_positions} in another, over "
                "which kfac takes means: give all inputs one length, or a chunk that holds a block"
            )

    def _add_squares(self, chunk: Mapping[str, LayerRows], first: bool) -> None:
        for name, squares in merge_squares(chunk).items():
            self._squares[name] = self._squares[name].add_(squares) if name in self._squares else squares

    def explicit(self, name: str) -> Tensor:
        self._have(name)
        if name in self._rows:
            return self._rows[name]
        parts = self._parts(name)
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not self._values_only or len(self.groups) == 1:  # else all of them would not fit
            self._rows[name] = joined
        return joined

    def forget(self, name: str) -> None:
        self._rows.pop(name, None)
        self._forgotten.add(name)
        layer = layer_of(name)
        if all(other in self._forgotten for other in self.shapes if layer_of(other) == layer):
            self._kept.pop(layer, None)

    def gram(self, name: str) -> Tensor:
        self._have(name)
        layer, key = parted(name)
        direct = self._joined(layer) if name not in self._rows else None
        return gram(*self._parts(name)) if direct is None else direct.gram(key)

    def _parts(self, name: str) -> list[Tensor]:
        """The rows of a tensor, or by chunk as they are made from what is kept of its layer."""
        if name in self._rows:
            return [self._rows[name]]
        layer, key = parted(name)
        return [part.row(key).flatten(0, 1) for part in self._kept[layer]]

    def _have(self, name: str) -> None:
        """Capture the group of a tensor, unless it is the one that is held."""
        if name not in self._rows and layer_of(name) not in self._kept:
            self._load_group(next(group for group in self.groups if name in group))

    def _joined(self, layer: str) -> LayerRows | None:
        """What is kept of a layer that takes the direct route, its chunks as one; None where it does not, or they are none."""
        first, *others = self._kept[layer]
        if not first.direct_is_cheaper():
            return None
        joined = first.joined(others) if others else first
        if joined is not None:
            self._kept[layer] = [joined]
        return joined

    def total_gram(self, precisions: Precisions = None) -> Tensor:
        return sum_of_grams(self, self.shapes, precisions)

    def kronecker_factors(self) -> dict[str, tuple[Factor, ...]]:
        return self._factors

    def column_squares(self) -> dict[str, Tensor]:
        return self._squares
