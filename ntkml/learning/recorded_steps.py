"""Steps of the weights that a GPU records once and replays: loss and gradients of a batch as one CUDA graph.

The step of a small network is hundreds of kernels of some microseconds each, which Python starts more slowly than the device
runs them. A recorded step is started as a whole, on the same kernels and the same memory, so that its numbers are those of
the step that was recorded. What it reads must stay in its place: batches are copied to where the first one lay; weights and
hyperparameters are moved in place by their optimisers as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.machine.memory import is_out_of_memory

#: Steps before the recorded one, in which libraries choose kernels and make their workspaces.
WARM_UPS = 3

#: The loss of (images, targets), the same operations for all batches of one size, without a draw and without a wait.
BatchLoss = Callable[[Tensor, Tensor], Tensor]


class RecordedSteps:
    """One recording for every size of a batch, made when the size is first seen.

    They share their memory, what one step takes, which stays theirs between the steps.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, _Recording] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._by_size)

    def gradients(self, loss: BatchLoss, parameters: Iterable[nn.Parameter], images: Tensor, targets: Tensor) -> Tensor:
        """Set ``.grad`` of the parameters to the gradients of the loss on a batch and return it, scalar, without a graph.

        Both are overwritten by the next call. ``loss`` and ``parameters`` must be the same in all calls.

        Raises:
            RuntimeError: the loss cannot be recorded, or there is no memory for it.
        """
        if len(images) not in self._by_size:
            # Graphs and streams belong to one device, which need not be the process's present one.
            with torch.cuda.device(images.device), _first_error():
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._by_size[len(images)] = _Recording(loss, list(parameters), images, targets, self._pool)
        return self._by_size[len(images)].replay(images, targets)


@contextmanager
def _first_error() -> Iterator[None]:
    """Leaving a recording that an error has broken raises another one, which says nothing."""
    try:
        yield
    except RuntimeError as error:
        first = error.__context__ or error
        if not isinstance(first, RuntimeError) or is_out_of_memory(first):
            raise first from None
        raise RuntimeError(
            f"a step of the weights cannot be recorded on this GPU: {first}; a loss whose steps are recorded must not wait for the "
            "device: let repeats_itself of its system be False"
        ) from first


class _Recording:
    """The graph of one size, with the tensors that it reads and writes."""

    def __init__(self, loss: BatchLoss, parameters: list[nn.Parameter], images: Tensor, targets: Tensor, pool: Any):
        self._parameters, self._images, self._targets = parameters, images.clone(), targets.clone()
        aside = torch.cuda.Stream(images.device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._compute(loss)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=aside):  # torch's own stream is the first device's
            self._loss, self._gradients = self._compute(loss)

    def _compute(self, loss: BatchLoss) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        value = loss(self._images, self._targets)
        return value.detach(), torch.autograd.grad(value, self._parameters, allow_unused=True)

    def replay(self, images: Tensor, targets: Tensor) -> Tensor:
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss
