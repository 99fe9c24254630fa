"""The settings of ``ntkml train``, read from ``experiments/train-*.toml``: weights and hyperparameters learned together.

Like the protocols of bound grids, a file has settings at its top, ``[prior]`` and ``[invariance]`` add to them, and
``[code]`` holds what the authors' code does otherwise than the paper's text.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ntkml.protocols import TRAIN_PREFIX, VARIANTS, merge_tables, protocol_names, read_tables
from ntkml.registry import unknown_name
from ntkml.system_specs import family_of

#: What is learned: the prior precision, or the prior precision and the six affine half-widths.
TRAIN_HPARAMS = ("prior", "invariance")
OPTIMIZERS = ("adam", "sgd")

_NAMED_ELSEWHERE = ("name", "title", "hparam", "lr_min", "hyper_decay", "estimator", "seed")


@dataclass(frozen=True, kw_only=True)
class TrainProtocol:
    """One training run.

    Epochs count from 1. Hyperparameters are updated after the weights' steps of the epochs ``burn_in``, ``burn_in +
    update_every``, ...; an update takes ``hyper_steps`` steps of the prior and ``aug_steps`` of the invariance. Learning
    rates follow half a cosine over all steps of the run: the weights' from ``lr`` to ``lr_min``, the others from their
    value to a ``hyper_decay``-th of it.
    """

    name: str
    title: str
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

    def updates_at(self, epoch: int) -> bool:
        """Whether the hyperparameters are updated in ``epoch``."""
        waited = epoch - self.burn_in
        return family_of(self.estimator).updates and waited >= 0 and waited % self.update_every == 0

    def num_updates(self, epochs: int) -> int:
        """How many of the first ``epochs`` epochs update the hyperparameters."""
        return sum(self.updates_at(epoch) for epoch in range(1, epochs + 1))

    @property
    def steps_per_update(self) -> int:
        """Estimates per update: prior and invariance share theirs, as in the authors' code."""
        return max(self.hyper_steps, self.aug_steps)

    @property
    def learns_invariance(self) -> bool:
        return self.hparam == "invariance" and self.estimator != "none"


def train_names() -> list[str]:
    """Names that :func:`load_train` knows."""
    return [name for name in protocol_names() if name.startswith(TRAIN_PREFIX)]


def load_train(name: str, hparam: str, variant: str = "paper") -> TrainProtocol:
    """Settings of the training protocol ``name`` when ``hparam`` is learned.

    Raises:
        ValueError: unknown name, hyperparameter or variant.
    """
    if hparam not in TRAIN_HPARAMS:
        raise ValueError(unknown_name("hyperparameter", hparam, list(TRAIN_HPARAMS)))
    if variant not in VARIANTS:
        raise ValueError(unknown_name("protocol variant", variant, list(VARIANTS)))
    table = read_tables(name, train_names())
    table = merge_tables(table, table["code"] if variant == "code" else {})
    table = merge_tables(table, table[hparam])
    known = {field.name for field in fields(TrainProtocol)} - {"name", "hparam"}
    return TrainProtocol(name=name, hparam=hparam, **{key: table[key] for key in known})


def departures(protocol: TrainProtocol, asked: TrainProtocol, variant: str) -> list[str]:
    """Sentences that a caption must show: which variant of a protocol, and where a run differs from it.

    The estimator and the seed are said elsewhere.
    """
    said = {"code": ["Settings of the authors' code where it differs from the paper's text."]}.get(variant, [])
    names = [field.name for field in fields(TrainProtocol) if field.name not in _NAMED_ELSEWHERE]
    pairs = [(name.replace("_", " "), getattr(protocol, name), getattr(asked, name)) for name in names]
    changes = [f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if ours != theirs]
    return said + ([f"Against protocol {asked.name}: {', '.join(changes)}."] if changes else [])
