"""Text for people: errors in one line, numbers of things, what can be written, and what nobody need read."""

from __future__ import annotations

import warnings

#: torch says so when the first product of a process on a GPU is one of a backward pass; it makes the context then.
_NO_CONTEXT_YET = "Attempting to run cuBLAS, but there was no current CUDA context!"


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def one_line(error: Exception) -> str:
    """The message without line breaks, or the error's type; an operating-system error with the file it concerns."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def as_utf8(text: str) -> str:
    """Text that can be written; bytes of a path that are no UTF-8 become escapes such as ``\\udcff``."""
    return text.encode(errors="backslashreplace").decode()


def hide_harmless_warnings() -> None:
    """Leave out, in this process, a warning of torch that asks nothing of anybody."""
    warnings.filterwarnings("ignore", _NO_CONTEXT_YET, UserWarning)
