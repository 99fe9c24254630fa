"""One call of a layer in a forward pass: the layers that it computes, and whether their rows would be right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ntkml.layers import attention, conv, elementwise, embedding, recurrent
from ntkml.layers.layer_rows import qualified
from ntkml.layers.uses import ElementwiseUse, EmbeddingUse, OneUse, PositionsUse, RecurrentUse


@dataclass(frozen=True)
class Call:
    """A call of the layer ``name``, with the steps in front of the batch where ``steps_first``.

    ``keys``: the parameters to capture by layer, of :func:`inside`. ``given`` and ``named``: the arguments, the first one the inputs.
    ``output``: what the layer gave for them; attention gives its weights too, or None, recurrent layers their last states.
    """

    name: str
    module: nn.Module
    keys: Mapping[str, tuple[str, ...]]
    given: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any
    steps_first: bool = False

    @property
    def inputs(self) -> Tensor:
        """The first argument, a tensor wherever the call is supported, with the batch in front: (n * S, ...)."""
        first: Tensor = self.given[0]
        return first.transpose(0, 1) if self.steps_first else first

    @property
    def result(self) -> Tensor:
        """What the layer made of its inputs."""
        return next(tensors_in(self.output))

    @property
    def computed_anew(self) -> bool:
        """Whether what replaces the result is another computation of the same."""
        return isinstance(self.module, (*elementwise.TYPES, *recurrent.TYPES, nn.MultiheadAttention, nn.EmbeddingBag))

    def unsupported(self) -> str | None:
        """Why the rows would be wrong with these arguments, or None."""
        if not self.given:
            return "it is called with a keyword"
        if (
            isinstance(self.module, (nn.MultiheadAttention, *recurrent.SEQUENCES))
            and self.module.batch_first == self.steps_first
        ):
            return f"it has batch_first={self.module.batch_first}"
        if isinstance(self.module, nn.MultiheadAttention):
            return attention.unsupported_call(self.module, self.given, self.named)
        if isinstance(self.module, recurrent.TYPES):
            return recurrent.unsupported_call(self.module, self.given, self.named)
        if isinstance(self.module, nn.EmbeddingBag):
            return embedding.unsupported_call(self.module, self.given, self.named)
        return None

    def uses(self, num_views: int, graph: bool) -> tuple[list[OneUse], Any]:
        """The uses of layers, and what the output is to be replaced by (None: it stays).

        ``graph``: whether inputs are kept with theirs.
        """
        name, module, inputs = self.name, self.module, self.inputs
        if isinstance(module, elementwise.TYPES):
            own = elementwise.copies(module, len(inputs))
            edges = tuple(get_gradient_edge(own[key]) for key in self.keys[name])
            result = elementwise.output(module, inputs, own)
            return [ElementwiseUse(name, self.keys[name], edges, num_views)], self._placed(result)
        if isinstance(module, embedding.TYPES):
            if isinstance(module, nn.EmbeddingBag):
                result = embedding.vectors(module, inputs)
                replaced: Any = embedding.bags(module, inputs, result)
            else:
                result, replaced = self._with_an_edge()
            edge = get_gradient_edge(result)
            return [EmbeddingUse(name, self.keys[name], (edge,), module, inputs.detach(), num_views)], replaced
        if isinstance(module, recurrent.TYPES):
            sequence = inputs if isinstance(module, recurrent.SEQUENCES) else inputs.unsqueeze(1)
            output, of_gates = recurrent.unrolled(module, sequence, self.given, self.named)
            return [self._recurrent_use(of_gates, sequence, num_views, graph)], output
        maps, replaced = self._linear_maps()
        uses: list[OneUse] = []
        for layer, keys in self.keys.items():
            of, source, result = maps[layer]
            kept = source if graph else source.detach()
            uses.append(PositionsUse(layer, keys, (get_gradient_edge(result),), of, kept, num_views))
        return uses, replaced

    def _recurrent_use(
        self, maps: Sequence[recurrent.GateMap], sequence: Tensor, num_views: int, graph: bool
    ) -> RecurrentUse:
        name, trainable = self.name, self.keys[self.name]
        wanted = [one for one in maps if one.gates.weight in trainable or one.gates.bias in trainable]
        edges = {id(one.gradients_at): get_gradient_edge(one.gradients_at) for one in wanted}
        uses = []
        for one in wanted:
            keys = tuple(key for key in (one.gates.weight, one.gates.bias) if key in trainable)
            source = one.inputs if graph else one.inputs.detach()
            uses.append(PositionsUse(name, keys, (edges[id(one.gradients_at)],), one.gates, source, num_views))
        overwritable = any(one.inputs is sequence and one.gates.weight in trainable for one in wanted)
        return RecurrentUse(name, uses, sequence if overwritable else None)

    def _linear_maps(self) -> tuple[dict[str, tuple[nn.Module, Tensor, Tensor]], Any]:
        """The linear maps by layer, each with its inputs and its result, and what is to replace the call's own output."""
        name, module, inputs = self.name, self.module, self.inputs
        if isinstance(module, nn.MultiheadAttention):
            projected = attention.projected(module, inputs)
            mixed = attention.mixed_values(module, projected, self.given, self.named)
            result = attention.output(module, mixed, self._placed(self.result))
            both = (module, inputs, projected), (module.out_proj, mixed, result)
            return dict(zip(inside(name, module), both, strict=True)), (self._placed(result), *self.output[1:])
        result, replaced = self._with_an_edge()
        return {name: (module, inputs, result)}, replaced

    def _with_an_edge(self) -> tuple[Tensor, Tensor | None]:
        """The result with the batch in front, and what is to replace it.

        A linear layer over tokens gives a view. Overwriting one in place would take its edge out of the graph, overwriting the
        same memory as none does not.
        """
        if self.steps_first:
            result = self.result.transpose(0, 1)
            return result, self._placed(result)
        result = self.result
        return result, torch.ops.aten._unsafe_view(result, result.shape) if result._is_view() else None

    def _placed(self, result: Tensor) -> Tensor:
        """A result with the batch where the call has it, no view of it (or the other way round)."""
        return result.transpose(0, 1).clone() if self.steps_first else result


#: Types of layers whose inputs may have the steps in front of the batch: they do not tell the first dimensions apart, or know.
_STEPS_FIRST = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, *recurrent.SEQUENCES)


def has_steps_first(module: nn.Module, shapes: Mapping[int, torch.Size]) -> bool:
    """Whether a layer sees the batch in its second dimension. shapes: of its inputs, by the number of the network's."""
    behind = all(len(shape) > 1 and shape[1] == count for count, shape in shapes.items())
    return isinstance(module, _STEPS_FIRST) and behind and any(shape[0] != count for count, shape in shapes.items())


def inside(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """The layers that a call of a module computes, by name: itself, and the projection of the outputs inside attention."""
    found = {name: module}
    if isinstance(module, nn.MultiheadAttention):
        found[qualified(name, "out_proj")] = module.out_proj
    return found


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of an output, which may be a tuple of such outputs: the layer's result, and what it gives beside that."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple):
        for each in output:
            yield from tensors_in(each)


def unsupported(module: nn.Module) -> str | None:
    """Why the rows of a module of a supported type would be wrong at its settings, or None."""
    if isinstance(module, nn.MultiheadAttention):
        return attention.unsupported(module)
    if isinstance(module, recurrent.TYPES):
        return recurrent.unsupported(module)
    if isinstance(module, embedding.TYPES):
        return embedding.unsupported(module)
    return conv.unsupported(module) if isinstance(module, conv.TYPES) else None
