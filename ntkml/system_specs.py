"""Names of the ways to learn hyperparameters: estimators of the marginal likelihood, and the other systems.

``map`` is another word for ``none`` and ``lila`` for ``kfac-N-C`` (Immer et al. 2022). Stdlib-only, like :mod:`ntkml.specs`.

>>> str(parse_system("sampled-16"))
'sampled-16'
>>> canonical_name("lila")
'kfac-N-C'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ntkml.registry import STRUCTURES, unknown_name
from ntkml.specs import NO_ESTIMATOR, parse_estimator

ALIASES = {"map": NO_ESTIMATOR, "lila": "kfac-N-C"}

#: What is learned: the prior precision, or the prior precision and the six affine half-widths.
PRIOR, INVARIANCE = "prior", "invariance"
TRAIN_HPARAMS = (PRIOR, INVARIANCE)

#: The largest number in a name: a grid makes a list of so many values before its first fit.
MOST_COUNTED = 10_000


@dataclass(frozen=True)
class Family:
    """What is known of a system by its name alone.

    ``learns``: values of ``--hparam`` that it takes. ``data``: what it learns from, "train", "train + validation" or
    "shards". ``updates``: whether it has hyperparameter updates of its own, between the epochs of the weights.
    ``learns_prior``: whether its updates move the prior precision. ``fixed_point``: they do so by one step of a fixed-point
    iteration, whatever ``hyper_steps`` a protocol asks for.
    ``counts``: what the number in its name counts. ``searches``: whether it is a search over fits of other systems.
    """

    learns: tuple[str, ...]
    data: str = "train"
    updates: bool = False
    learns_prior: bool = False
    counts: str = ""
    searches: bool = False
    fixed_point: bool = False


_HOAG = Family(TRAIN_HPARAMS, "train + validation", updates=True, learns_prior=True)
_SEARCH = Family(TRAIN_HPARAMS, "train + validation", counts="fits", searches=True)

FAMILIES = {
    NO_ESTIMATOR: Family(TRAIN_HPARAMS),
    "fixed-augmentation": Family((INVARIANCE,), counts="degrees of rotation"),
    "hoag": _HOAG,
    "hoag-quadratic": _HOAG,
    "hoag-cubic": _HOAG,
    "hoag-exact": _HOAG,
    "sampled": Family((PRIOR,), updates=True, learns_prior=True, counts="posterior samples", fixed_point=True),
    "augerino": Family((INVARIANCE,)),
    "augerino-lila": Family((INVARIANCE,)),
    "partitioned": Family((INVARIANCE,), "shards", updates=True, counts="shards"),
    "grid": _SEARCH,
    "random": _SEARCH,
    "tpe": _SEARCH,
    "gp": _SEARCH,
    "cross-validation": Family(TRAIN_HPARAMS, "train + validation", counts="folds", searches=True),
}

#: The marginal likelihood, for what is the same question about every system.
_BOUND = Family(TRAIN_HPARAMS, updates=True, learns_prior=True)


@dataclass(frozen=True)
class SystemSpec:
    """A system by its name: the family and, where it counts something, the number."""

    family: str
    number: int | None = None

    def __str__(self) -> str:
        return self.family if self.number is None else f"{self.family}-{self.number}"

    @property
    def count(self) -> int:
        """The number of a family that counts something, whose names all have one."""
        assert self.number is not None
        return self.number


def is_bound(name: str) -> bool:
    """Whether ``name`` is an estimator of the marginal likelihood."""
    return name.split("-")[0] in STRUCTURES


def family_of(name: str) -> Family:
    """What is known of an estimator or a system, by its canonical name."""
    return _BOUND if is_bound(name) else FAMILIES[parse_system(name).family]


def parse_system(text: str) -> SystemSpec:
    """The system called ``text``.

    Raises:
        ValueError: no system of that name, or a number that is missing, too large, too many or zero.
    """
    if text in FAMILIES:
        if counts := FAMILIES[text].counts:
            raise ValueError(f"{text!r} lacks its number of {counts}: write for example {text}-4")
        return SystemSpec(text)
    family, _, number = text.rpartition("-")
    if family not in FAMILIES or not FAMILIES[family].counts:
        raise ValueError(unknown_name("system", text, _system_names()))
    if not re.fullmatch(r"[1-9][0-9]*", number):
        raise ValueError(f"{text!r}: the number of {FAMILIES[family].counts} is a positive integer, got {number!r}")
    if len(number) > len(str(MOST_COUNTED)) or int(number) > MOST_COUNTED:
        raise ValueError(f"{text[:40]!r}: the number of {FAMILIES[family].counts} is at most {MOST_COUNTED}")
    return SystemSpec(family, int(number))


def parts_of(name: str) -> dict[str, str]:
    """What the columns of rows say of an estimator or a system beside its canonical name: nothing but its family of a system."""
    if not is_bound(name):
        return {"structure": parse_system(name).family, "inputs": "", "outputs": "", "grouping": ""}
    spec = parse_estimator(name)
    return {
        "structure": spec.structure,
        "inputs": "N" if spec.inputs is None else str(spec.inputs),
        "outputs": spec.outputs,
        "grouping": "+".join(part for part in (spec.grouping, "iid" if spec.iid else "") if part),
    }


def canonical_name(text: str) -> str:
    """The one spelling of an estimator or a system.

    Raises:
        ValueError: neither is called so.
    """
    text = ALIASES.get(text, text)
    if is_bound(text):
        return str(parse_estimator(text))
    if text.split("-")[0] in {name.split("-")[0] for name in FAMILIES}:
        return str(parse_system(text))
    estimators = [f"{structure}-100-1" for structure in STRUCTURES]
    raise ValueError(unknown_name("estimator or system", text, [*estimators, *_system_names()]))


def _system_names() -> list[str]:
    return [*(f"{name}-K" if family.counts else name for name, family in FAMILIES.items()), *ALIASES]
