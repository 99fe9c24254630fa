"""The C library's allocator: whether memory that was freed stays with the process (glibc only).

By default a block of some MiB goes back to the system when it is freed, and the next one of its size costs a page fault for
every 4 KiB again: on a virtual machine that was a third of a training step on 3200 views of MNIST. The command line, whose
process is its own, keeps what it had; a library must not decide that.
"""

from __future__ import annotations

import ctypes
import os
import platform

#: What a user has decided about the same thing.
_DECIDED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")

# Parameters of mallopt(3): take blocks below the first from the heap, return its end to the system above the second.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the rest of the process. False where it is not glibc, or the environment decides otherwise."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _DECIDED):
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(parameter, _NEVER) == 1 for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


def return_freed_memory() -> None:
    """Give back to the system, once, what is kept and free: what is resident afterwards is in use."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
