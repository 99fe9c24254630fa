"""CUDA graphs on a CPU: operations are written down while they are recorded and done again, on the same memory, at a replay."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """``torch.cuda.graph``: whatever the block computes belongs to the graph. As there, the host may not read a number."""

    def __init__(self, graph, pool, stream):
        assert stream.device is not None, "a graph is recorded on the stream of its tensors' device"
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        assert operation is not torch.ops.aten._local_scalar_dense.default, "the host waits while steps are recorded"
        made = operation(*given, **(named or {}))
        self.graph.operations.append((operation, given, named or {}, made))
        return made


class Graph:
    def __init__(self):
        self.operations, self.replays = [], 0

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for operation, given, named, made in self.operations:
                again = operation(*given, **named)
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def replace_cuda(monkeypatch, graphs):
    """What ``ntkml.learning.recorded_steps`` takes of ``torch.cuda``. The graphs that are made come into ``graphs``."""

    def stream(device=None):
        return SimpleNamespace(device=device, wait_stream=lambda other: None)

    def graph():
        graphs.append(Graph())
        return graphs[-1]

    replaced = {
        "Stream": stream,
        "current_stream": stream,
        "device": lambda device: nullcontext(),
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": graph,
        "graph": Recorder,
    }
    for name, stand_in in replaced.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
