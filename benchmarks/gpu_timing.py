"""One step on a GPU: its time, the peak of the allocator, its kernels, and the lines at which the host waited."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

#: A step is timed once where the one that warms up took longer, else five times.
LONG_SECONDS = 0.7

#: What names of kernels say that multiply matrices, convolutions among them, and of those that only move their operands.
_PRODUCTS = ("gemm", "gemv", "fprop", "dgrad", "wgrad", "convolve", "winograd", "syrk", "cutlass")
_MOVES = ("tonhwc", "tonchw", "copy", "pad")


@dataclass(frozen=True)
class Measured:
    """What is seen of one system's step. ``kernels``: milliseconds by name; ``waits``: how often by line of code."""

    seconds: float
    repeats: int
    peak_mib: float
    kernels: dict[str, float]
    waits: Counter[str]

    @property
    def product_share(self) -> float:
        products = sum(spent for name, spent in self.kernels.items() if multiplies(name))
        return products / max(sum(self.kernels.values()), 1e-9)


def multiplies(kernel: str) -> bool:
    """Whether a kernel of this name multiplies matrices, convolutions among them. FFTs of a convolution do not count."""
    name = kernel.lower()
    return any(word in name for word in _PRODUCTS) and not any(word in name for word in _MOVES)


def measure(step: Callable[[], object], device: torch.device) -> Measured:
    """Peak memory of the first step, the time of later ones, and the kernels and waits of one more."""
    torch.cuda.empty_cache()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    first = _timed(step, device)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    repeats = 1 if first > LONG_SECONDS else 5
    seconds = median(_timed(step, device) for _ in range(repeats))
    return Measured(seconds, repeats, peak, *_looked_into(step, device))


def _timed(step: Callable[[], object], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _looked_into(step: Callable[[], object], device: torch.device) -> tuple[dict[str, float], Counter[str]]:
    """Milliseconds of every kernel, and the lines at which the host waited."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            torch.profiler.profile(activities=activities, acc_events=True) as profile,
        ):
            warnings.simplefilter("always")
            step()
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize(device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    lines = Counter(f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}" for w in waits)
    return {event.key: event.self_device_time_total / 1e3 for event in profile.key_averages()}, lines
