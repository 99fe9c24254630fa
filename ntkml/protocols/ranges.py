"""What every setting of a training run may be: a user's file is held against these, and options take their limits from here.

Light, like all that is read before torch is imported: what depends on the data or on other settings is checked where a
run is resolved (:mod:`ntkml.runs.train_checks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntkml.registry import LIKELIHOODS, MODELS, unknown_name
from ntkml.specs import PRIOR_KINDS
from ntkml.system_specs import canonical_name

OPTIMIZERS = ("adam", "sgd")

#: The largest number of anything that is counted: what torch can take in 64 bits, and far more than anyone can wait for.
MOST = 10**9
MOST_SAMPLES = 10_000
LAST_SEED = 2**63 - 1
#: Rates and precisions: float32 holds 1e-38 to 3e38, and they are multiplied and divided by more than one.
SMALLEST, LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class Whole:
    """Whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: int

    def check(self, value: Any) -> None:
        """Raise ValueError where ``value`` is not one of these; the message says what to write."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise ValueError(f"write a whole number from {self.low} to {self.high}")


@dataclass(frozen=True)
class Number:
    """Numbers from ``low`` to ``LARGEST``."""

    low: float = SMALLEST

    def check(self, value: Any) -> None:
        """Raise ValueError where ``value`` is not one of these, NaN included."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= LARGEST:
            raise ValueError(f"write a number from {self.low:g} to {LARGEST:g}")


@dataclass(frozen=True)
class Name:
    """One of the names ``known``; any name where it is empty."""

    kind: str
    known: Sequence[str] = ()

    def check(self, value: Any) -> None:
        """Raise ValueError where ``value`` is not such a name."""
        if not isinstance(value, str) or not value:
            raise ValueError(f'write the name of a {self.kind} in quotes, such as "{(*self.known, "digits")[0]}"')
        if self.known and value not in self.known:
            raise ValueError(unknown_name(self.kind, value, list(self.known)))


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def check(self, value: Any) -> None:
        """Raise ValueError where ``value`` is neither."""
        if not isinstance(value, bool):
            raise ValueError("write true or false")


@dataclass(frozen=True)
class System:
    """Names of estimators and of other systems, in their one spelling."""

    def check(self, value: Any) -> None:
        """Raise ValueError where ``value`` is not such a name."""
        if not isinstance(value, str):
            raise ValueError('write the name of an estimator or another system in quotes, such as "ntk-100-tree"')
        if (known := canonical_name(value)) != value:
            raise ValueError(f'write "{known}", as runs of it are called')


_COUNT, _RATE = Whole(1, MOST), Number()

RANGES: Mapping[str, Whole | Number | Name | Flag | System] = {
    "dataset": Name("data set"),
    "model": Name("model", tuple(MODELS)),
    "likelihood": Name("likelihood", tuple(LIKELIHOODS)),
    "estimator": System(),
    "num_data": _COUNT,
    "seed": Whole(0, LAST_SEED),
    "samples": Whole(1, MOST_SAMPLES),
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "optimizer": Name("optimizer", OPTIMIZERS),
    "lr": _RATE,
    "lr_min": Number(low=0),
    "prior_kind": Name("prior", PRIOR_KINDS),
    "prior_init": _RATE,
    "burn_in": Whole(0, MOST),
    "update_every": _COUNT,
    "hyper_steps": _COUNT,
    "aug_steps": Whole(0, MOST),  # none where the prior alone is learned
    "lr_hyper": Number(low=0),  # zero: it stays where it is
    "lr_aug": Number(low=0),
    "hyper_decay": _RATE,
    "eval_every": _COUNT,
    "aug_decay": _RATE,
    "flip": Flag(),
    "blocks_per_step": _COUNT,
    "fresh_blocks": Flag(),
}


def check_setting(name: str, value: Any, written: str) -> None:
    """Raise ValueError where a training run cannot have ``value`` for its setting ``name``; the message says what to write.

    ``written``: what the user called the setting.
    """
    try:
        RANGES[name].check(value)
    except ValueError as error:
        raise ValueError(f"{written} = {_shown(value)}: {error}") from None


def _shown(value: Any) -> str:
    """A value as a TOML file has it, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
