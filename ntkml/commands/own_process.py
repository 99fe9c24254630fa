"""What the command line arranges in a process that is its own; nothing of it is done to somebody else's."""

from __future__ import annotations

import os
import sys

from ntkml.allocator import keep_freed_memory


def arrange_process() -> None:
    """Memory, standard streams and the surroundings of libraries, before any command is read."""
    keep_freed_memory()
    os.environ["MPLBACKEND"] = "agg"  # pictures are files: no window, and no other name that matplotlib might not know
    if sys.stderr is None:
        _forget_standard_error()
    if sys.stdout is not None and sys.stdout.errors == "strict":
        # A path that is no UTF-8 is shown with escapes, as standard error does already, instead of not at all.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _forget_standard_error() -> None:
    """Where standard error is closed (``2>&-``), nobody wants to read it: what is written there is dropped.

    Number 2 itself is taken, for workers too: the next file opened, a lock or a checkpoint, would get it otherwise, and
    whatever a library prints.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.set_inheritable(2, True)  # not so yet where the file that was opened is number 2 itself
    sys.stderr = os.fdopen(2, "w", encoding="utf-8")
