"""Sentences about several runs: what holds of all is said once, the rest with the names it holds of; long lists are cut."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

_MOST_NAMED = 5
#: "Against protocol table-1: epochs 20 instead of 300, dataset a, b instead of mnist."; names of data may hold commas.
_AGAINST = re.compile("(Against protocol .*?): (.*)[.]", re.DOTALL)
_CHANGE = re.compile("(?:^|, )(.+? instead of .*?)(?=, |$)", re.DOTALL)


def merged(notes: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Sentences for a caption, from (name, the sentences of a run of that name); a name may come more than once.

    Sentences on a protocol ("Against protocol table-1: epochs 20 instead of 300, ...") are taken apart, so that what all
    runs changed is not said again for each. What holds of some of the runs of a name says so.
    """
    runs = list(notes)
    said: dict[tuple[str, str], set[int]] = {}
    for index, (_, sentences) in enumerate(runs):
        for sentence in sentences:
            start, changes = taken_apart(sentence)
            for change in changes or [""]:
                said.setdefault((start, change), set()).add(index)
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (start, part), of in said.items():
        together.setdefault((start, _about([name for name, _ in runs], of)), []).append(part)
    return [_sentence(start, about, [part for part in parts if part]) for (start, about), parts in together.items()]


def taken_apart(sentence: str) -> tuple[str, list[str]]:
    """A sentence on a protocol as its start and the changes that it lists; any other one with an empty list."""
    found = _AGAINST.fullmatch(sentence)
    return (found[1], _CHANGE.findall(found[2])) if found else (sentence, [])


def _about(names: Sequence[str], of: Collection[int]) -> tuple[str, ...]:
    """The names of the runs ``of`` some; none where it is all of them."""
    if len(of) == len(names):
        return ()
    others = list(dict.fromkeys(name for index, name in enumerate(names) if index not in of))
    mine = list(dict.fromkeys(names[index] for index in sorted(of)))
    if len(others) == 1 and others[0] not in mine and len(mine) > 2:
        return (f"all but {others[0]}",)
    return tuple(f"some of {name}" if name in others else name for name in mine)


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
