"""Peak memory of a run so far, or of one part of it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from ntkml.machine.allocator import return_freed_memory

#: Writing "5" there sets a process's high-water mark to what is resident now (Linux, proc(5)).
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far, or since :func:`begin_peak`: of a GPU's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not by getrusage where the kernel tells it: a process inherits that peak from the one that started it (vfork, then exec).
    _, _, own = (_STATUS.read_text() if _STATUS.exists() else "").partition("VmHWM:")
    if own:
        return int(own.split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def begin_peak(device: torch.device) -> bool:
    """Forget the peak so far; whether this system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    return_freed_memory()
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
