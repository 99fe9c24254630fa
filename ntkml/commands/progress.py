"""What commands say while they compute: progress bars and lines, on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click


def track(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """The items, with a progress bar (:data:`ntkml.runs.progress.Track`)."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, dynamic_ncols=True, mininterval=0.5)


def warn(line: str) -> None:
    """A line that is no result."""
    click.echo(line, err=True)
