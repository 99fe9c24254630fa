"""Where a cell of a sweep stands, in the words that people and logs read. No torch: commands import this at once."""

from __future__ import annotations

#: A cell waits for a worker, is trained by one of ours or by another process, or has ended.
WAITING, RUNNING, ELSEWHERE = "waiting", "running", "elsewhere"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
OPEN = (WAITING, RUNNING, ELSEWHERE)
ENDED = (DONE, FAILED, STOPPED)

#: What the folder of a run says beside ``DONE``, ``RUNNING`` (by whomever) and ``STOPPED``.
MISSING, DAMAGED = "missing", "damaged"
