"""Text for people: errors in one line, numbers of things, what can be written."""

from __future__ import annotations


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
