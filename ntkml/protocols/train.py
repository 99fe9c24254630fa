"""The settings of ``ntkml train``, read from the ``experiments/*.toml`` of kind "train": all is learned together.

Like the protocols of bound grids, a file has settings at its top, ``[prior]`` and ``[invariance]`` add to them, and
``[code]`` holds what the authors' code does otherwise than the paper's text. A table ``[full]`` below any of them is for
the estimators whose blocks hold all inputs (``kfac-N-C``), ``[none]`` for MAP. ``datasets`` are the data sets of a file,
``dataset`` is its default. ``reduces`` names the protocol that a file is a smaller version of: every caption then says
what differs. ``default_for`` lists the data sets on which ``ntkml train`` takes a file unasked.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ntkml.dataset_names import split_name
from ntkml.protocols.tables import TRAIN, VARIANTS, merge_tables, names_of, read_tables
from ntkml.registry import unknown_name
from ntkml.specs import NO_ESTIMATOR, parse_estimator
from ntkml.system_specs import INVARIANCE, TRAIN_HPARAMS, family_of, is_bound

#: The protocol of data sets that no file claims.
DEFAULT = "train-digits"

#: What a protocol calls itself: no setting of a run.
WORDS = ("name", "title", "variant")

#: What a run is called by: what it learns by what, and its repetition; the rest are its settings.
NAMED_ELSEWHERE = (*WORDS, "hparam", "estimator", "seed")


@dataclass(frozen=True, kw_only=True)
class TrainProtocol:
    """One training run.

    Epochs count from 1. Hyperparameters are updated after the weights' steps of the epochs ``burn_in``, ``burn_in +
    update_every``, ...; an update takes ``hyper_steps`` steps of the prior and ``aug_steps`` of the invariance. Learning
    rates follow half a cosine over all steps of the run: the weights' from ``lr`` to ``lr_min``, the prior's from
    ``lr_hyper`` to a ``hyper_decay``-th of it, the invariance's from ``lr_aug`` to an ``aug_decay``-th.

    With ``flip`` one coin for each batch of the weights' steps mirrors all its images from left to right, or none. An
    estimate and the test see images as they are: the marginal likelihood is that of the data.

    While the prior alone is learned, the blocks that an update draws may serve all of its steps, since weights and rows
    stay as they are: a further step is linear algebra alone. With ``fresh_blocks`` every step draws its own, as in the
    paper, which costs rows every time and follows no single block. Where views are learned every step does so anyway.

    Fields with a default are younger than the first results; where they hold it, a run keeps the id that it had.
    """

    name: str
    title: str
    variant: str = "paper"
    hparam: str
    dataset: str
    model: str
    likelihood: str  # classes as integers for "categorical", one-hot for "bernoulli" and "gaussian"
    estimator: str  # or another system; "none" is MAP: nothing but the weights is learned
    num_data: int
    seed: int
    samples: int  # augmentation views S
    epochs: int
    batch_size: int
    optimizer: str  # of the weights; hyperparameters take Adam
    lr: float
    lr_min: float
    prior_kind: str  # "scalar", "layerwise" or "diagonal"
    prior_init: float
    burn_in: int
    update_every: int
    hyper_steps: int
    aug_steps: int
    lr_hyper: float
    lr_aug: float
    hyper_decay: float
    eval_every: int
    aug_decay: float = 10.0
    flip: bool = False
    blocks_per_step: int = 1  # drawn from the partition for every hyperparameter step; processes share them
    fresh_blocks: bool = False

    def updates_at(self, epoch: int) -> bool:
        """Whether the hyperparameters are updated in ``epoch``."""
        waited = epoch - self.burn_in
        return family_of(self.estimator).updates and waited >= 0 and waited % self.update_every == 0

    def num_updates(self, epochs: int) -> int:
        """How many of the first ``epochs`` epochs update the hyperparameters."""
        first = self.burn_in or self.update_every  # epochs count from 1: there is no epoch 0 to update in
        if not family_of(self.estimator).updates or epochs < first:
            return 0
        return (epochs - first) // self.update_every + 1

    @property
    def steps_per_update(self) -> int:
        """Estimates per update: prior and invariance share theirs, as in the authors' code."""
        return max(self.hyper_steps, self.aug_steps)

    @property
    def learns_invariance(self) -> bool:
        return self.hparam == INVARIANCE and self.estimator != NO_ESTIMATOR

    @property
    def draws_afresh(self) -> bool:
        """Whether prior steps draw their own blocks: ``fresh_blocks``, where it means anything to the run."""
        return self.fresh_blocks and not self.learns_invariance and draws_blocks(self.estimator)


#: What a run can change of its training protocol.
SETTINGS = tuple(field.name for field in fields(TrainProtocol) if field.name not in NAMED_ELSEWHERE)


def train_names() -> list[str]:
    """Names that :func:`load_train` knows."""
    return names_of(TRAIN)


def default_name(dataset: str | None) -> str:
    """The protocol that is meant where a data set is named and no protocol is; variants count as their data set."""
    plain = split_name(dataset or "")[0]
    claims = ((name, read_tables(name)) for name in train_names())
    return next((name for name, table in claims if plain in table.get("default_for", [])), DEFAULT)


def default_hparam(name: str) -> str:
    """What the training protocol ``name`` learns where nothing is asked for: its only hyperparameter, or the prior.

    Raises:
        ValueError: unknown name.
    """
    return next(iter(_hparams(read_tables(name, train_names()))))


def load_train(
    name: str, hparam: str, variant: str = "paper", estimator: str | None = None, dataset: str | None = None
) -> TrainProtocol:
    """Settings of the training protocol ``name`` when ``hparam`` is learned.

    Args:
        estimator: of the run, None for the protocol's: a file may say other things of estimators of all inputs, and MAP.
        dataset: of the run, taken where the file lists it in ``datasets``.

    Raises:
        ValueError: unknown name, hyperparameter or variant, or one that the protocol does not learn.
    """
    if hparam not in TRAIN_HPARAMS:
        raise ValueError(unknown_name("hyperparameter", hparam, list(TRAIN_HPARAMS)))
    if variant not in VARIANTS:
        raise ValueError(unknown_name("protocol variant", variant, list(VARIANTS)))
    table = read_tables(name, train_names())
    if hparam not in _hparams(table):
        raise ValueError(f"{name} learns the {_hparams(table)[0]}: write --hparam {_hparams(table)[0]}")
    table = merge_tables(table, table.get("code", {}) if variant == "code" else {})
    table = merge_tables(table, table[hparam])
    estimator = estimator or table["estimator"]
    table = merge_tables(table, table.get(_scope(estimator), {}))
    chosen = {"name": name, "hparam": hparam, "variant": variant, "estimator": estimator}
    if dataset in table.get("datasets", []):
        chosen["dataset"] = dataset
    known = {field.name for field in fields(TrainProtocol)}
    return TrainProtocol(**{key: value for key, value in (table | chosen).items() if key in known})


def departures(protocol: TrainProtocol, asked: TrainProtocol) -> list[str]:
    """Sentences that a caption must show: which variant of a protocol, and where a run differs from it.

    A reduced protocol is held against the one that it reduces. The estimator and the seed are said elsewhere.
    """
    said = {"code": ["Settings of the authors' code where it differs from the paper's text."]}.get(asked.variant, [])
    asked = unreduced(asked)
    changes = [
        f"{name.replace('_', ' ')} {_said(ours)} instead of {_said(theirs)}"
        for name, ours, theirs in differing(protocol, asked)
    ]
    return said + ([f"Against protocol {asked.name}: {', '.join(changes)}."] if changes else [])


def _said(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def differing(protocol: TrainProtocol, asked: TrainProtocol) -> list[tuple[str, Any, Any]]:
    """The settings that differ, as (field, of ``protocol``, of ``asked``), estimator and seed left out."""
    pairs = [(name, getattr(protocol, name), getattr(asked, name)) for name in settings_for(protocol.estimator)]
    return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


def with_own_steps(protocol: TrainProtocol) -> TrainProtocol:
    """One step an update for systems of fixed points: at the same weights a second would mostly draw new samples."""
    return replace(protocol, hyper_steps=1) if family_of(protocol.estimator).fixed_point else protocol


def unreduced(protocol: TrainProtocol) -> TrainProtocol:
    """The protocol that ``protocol`` is a reduced version of, on its data set where that has it; else itself."""
    whole = read_tables(protocol.name, train_names()).get("reduces")
    if whole is None:
        return protocol
    return load_train(whole, protocol.hparam, protocol.variant, protocol.estimator, protocol.dataset)


def _hparams(table: dict[str, Any]) -> list[str]:
    """What a file has settings for."""
    return [hparam for hparam in TRAIN_HPARAMS if hparam in table]


def settings_for(estimator: str) -> list[str]:
    """The settings that mean something to runs of ``estimator``, by which they are compared."""
    return [name for name in SETTINGS if name != "fresh_blocks" or draws_blocks(estimator)]


def draws_blocks(estimator: str) -> bool:
    """Whether there are several blocks to draw from: not for MAP, other systems, nor all inputs and outputs at once."""
    if not is_bound(estimator):
        return False
    spec = parse_estimator(estimator)
    return spec.inputs is not None or spec.outputs != "C"


def _scope(estimator: str) -> str:
    """Which table of a file is for ``estimator`` alone."""
    if estimator == NO_ESTIMATOR:
        return "none"
    return "full" if is_bound(estimator) and parse_estimator(estimator).inputs is None else ""
