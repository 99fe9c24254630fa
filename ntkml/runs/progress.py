"""How a run shows how far it is: it iterates through a function that whoever starts it passes in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

#: track(items, total, label) yields the items and shows progress.
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]

#: track(rows, epochs in all, epochs done) yields the rows of one training run and shows progress.
TrackEpochs = Callable[[Iterable[dict[str, Any]], int, int], Iterable[dict[str, Any]]]
