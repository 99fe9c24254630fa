"""Settings of the process that several threads may need changed at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


class SharedSetting:
    """A setting that is changed while any thread is inside: the first one in changes it, the last one out sets it again.

    If each did both, one that came while another was inside would take the changed setting for the one to set again.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]):
        """``change`` changes the setting when it is entered, and sets it again when it is left."""
        self._change, self._lock = change, threading.Lock()
        self._inside, self._undo = 0, ExitStack()

    @contextmanager
    def changed(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._undo.enter_context(self._change())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._undo.close()
