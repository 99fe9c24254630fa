"""How running out of memory shows itself."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch found no memory; on a CPU torch has no type of its own for it."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
