"""Sentences about several runs: what holds of all is said once, the rest with the names it holds of; long lists are cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

_AGAINST = "Against protocol "
_MOST_NAMED = 5


def merged(notes: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Sentences for a caption, from (name, the sentences of a run of that name); a name may come more than once.

    Sentences on a protocol ("Against protocol table-1: epochs 20 instead of 300, ...") are taken apart, so that what all
    runs changed is not said again for each.
    """
    said: dict[tuple[str, str], dict[str, None]] = {}
    notes = list(notes)
    names = dict.fromkeys(name for name, _ in notes)
    for name, sentences in notes:
        for sentence in sentences:
            start, _, clauses = sentence.rstrip(".").partition(": ")
            parts = clauses.split(", ") if start.startswith(_AGAINST) else [""]
            for part in parts:
                said.setdefault((start if part else sentence, part), {})[name] = None
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (start, part), of in said.items():
        others = [name for name in names if name not in of]
        about = tuple(of) if others else ()
        if len(others) == 1 and len(of) > 2:
            about = (f"all but {others[0]}",)
        together.setdefault((start, about), []).append(part)
    return [_sentence(start, about, [part for part in parts if part]) for (start, about), parts in together.items()]


def first_few(values: Collection[Any]) -> str:
    """The values with commas; of many the first five, and how many there are."""
    named = ", ".join(map(str, islice(values, _MOST_NAMED)))
    return named if len(values) <= _MOST_NAMED else f"{named}, ...: {len(values)} in all"


def _sentence(start: str, about: Sequence[str], clauses: Sequence[str]) -> str:
    named = ", ".join(about)
    if not clauses:
        return f"{named}: {start}" if about else start
    if about:  # beside names that it has already, of another kind
        start = f"{start[:-1]}; {named})" if start.endswith(")") else f"{start} ({named})"
    return f"{start}: {', '.join(clauses)}."
