"""Processes that compute one training together: which part each one takes, and sums over all of them.

Every process draws the same batches, partitions, blocks and views from the same seeds, computes its own part of them and
takes the same steps: nothing is sent but sums. gloo carries what lies in main memory, nccl what lies on GPUs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from ntkml.machine.memory import is_out_of_memory

#: What torchrun tells every process that it starts.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLostError(ConnectionError):
    """Another process of the same training is gone."""


@dataclass(frozen=True)
class Processes:
    """Process number ``rank`` of ``count``. A single one sends nothing, and every method leaves what it is given."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes files and talks to the user."""
        return self.rank == 0

    def takes(self, index: int) -> bool:
        """Whether item number ``index`` of a list that all processes have is this one's."""
        return index % self.count == self.rank

    @property
    def part(self) -> slice:
        """The items of a batch that :meth:`takes` is true for."""
        return slice(self.rank, None, self.count)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each of them; without a graph."""
        total = value.detach().clone()
        self._reduce(total, "SUM")
        return total

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        numbers = torch.tensor(number)
        self._reduce(numbers, "MAX")
        return int(numbers)

    def wait(self) -> None:
        """Until all have come here."""
        self.largest(0)

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """A ``with`` block that the first process finishes before the others begin, as one download needs."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def check_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Compare what all processes should hold alike.

        Raises:
            ValueError: it differs.
        """
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        number = int.from_bytes(digest.digest()[:7], "big")
        if self.largest(number) != -self.largest(-number):
            raise ValueError(
                f"the processes have {what} that differ: run them on machines of one kind, or in one process"
            )

    @contextmanager
    def summed_gradients(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """What a ``with`` block adds to the ``.grad`` of parameters, summed over all processes; nothing where it fails."""
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        before = [parameter.grad for parameter in learned]
        for parameter in learned:
            parameter.grad = None
        try:
            yield
            if self.count > 1:
                self._sum_gradients(learned)
        except BaseException:
            for parameter, old in zip(learned, before, strict=True):
                parameter.grad = old
            raise
        for parameter, old in zip(learned, before, strict=True):
            if old is not None:
                parameter.grad = old if parameter.grad is None else old.add_(parameter.grad)

    def _sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """One message for each dtype and device; a gradient that no process has stays None."""
        kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in parameters:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for (dtype, device), alike in kinds.items():
            there = torch.tensor([p.grad is not None for p in alike], dtype=dtype, device=device)
            own = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in alike]
            total = self.total(torch.cat([*own, there]))
            *sums, found = total.split([p.numel() for p in alike] + [len(alike)])
            for parameter, gradient, anywhere in zip(alike, sums, found.tolist(), strict=True):
                if anywhere:
                    parameter.grad = torch.empty_like(parameter).copy_(gradient.view(parameter.shape))

    def send(self, data: bytes) -> None:
        """From the first process to all others, which :meth:`receive` it."""
        if self.count > 1:
            self._broadcast(torch.tensor(len(data)))
            self._broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def receive(self) -> bytes:
        """What the first process sends."""
        size = torch.tensor(0)
        self._broadcast(size)
        data = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(data)
        return data.numpy().tobytes()

    def _reduce(self, tensor: Tensor, operation: str) -> None:
        if self.count > 1:
            with self._others_there():
                distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))

    def _broadcast(self, tensor: Tensor) -> None:
        with self._others_there():
            distributed.broadcast(tensor, 0)

    @contextmanager
    def _others_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ProcessLostError(
                f"process {self.rank} of {self.count} has lost another one, whose own message says why: start all of them "
                "again to go on from the last checkpoint"
            ) from error


#: A training in one process.
ALONE = Processes()


@contextmanager
def launched_processes(device: torch.device) -> Iterator[Processes]:
    """Those that torchrun started and that this one is among, connected inside the ``with`` block; else :data:`ALONE`.

    Raises:
        ValueError: the environment is not one of torchrun, more processes than GPUs, or torch lacks what connects them.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    if missing := [name for name in _LAUNCHED if name not in os.environ]:
        raise ValueError(f"WORLD_SIZE is {count} without {', '.join(missing)}: start the processes with torchrun")
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda" and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine finds {torch.cuda.device_count()} GPUs: start as many processes as GPUs "
            "(torchrun --nproc-per-node), or choose --device cpu"
        )
    backends = ["gloo"] + ["nccl"] * (device.type == "cuda")
    if absent := [
        name for name in backends if not (distributed.is_available() and distributed.is_backend_available(name))
    ]:
        raise ValueError(f"this torch has no {absent[0]}, which connects the processes: train in one process")
    if device.type == "cuda":
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
