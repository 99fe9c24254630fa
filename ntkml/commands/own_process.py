"""What the command line arranges in a process that is its own; nothing of it is done to somebody else's."""

from __future__ import annotations

import os
import sys

from ntkml.machine.allocator import keep_freed_memory
from ntkml.machine.messages import hide_harmless_warnings


def arrange_process() -> None:
    """Memory, warnings, standard streams and the surroundings of libraries, before any command is read."""
    keep_freed_memory()
    hide_harmless_warnings()
    os.environ["MPLBACKEND"] = "agg"  # pictures are files: no window, and no other name that matplotlib might not know
    _fill_closed_streams()
    if sys.stdout.errors == "strict":
        # A path that is no UTF-8 is shown with escapes, as standard error does already, instead of not at all.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _fill_closed_streams() -> None:
    """Where a standard stream is closed (``2>&-``), nobody wants to read it: what is written there is dropped.

    The numbers themselves are taken, for workers too: the next file opened, a lock or a checkpoint, would get one otherwise,
    and whatever a library prints.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
