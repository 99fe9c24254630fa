"""What a training run is asked for against its data and systems: resolved, or refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import torch

from ntkml.datasets import ImageDataset
from ntkml.likelihoods import as_likelihood, groups_of
from ntkml.machine.messages import counted
from ntkml.protocols.train import TrainProtocol, with_own_steps
from ntkml.specs import NO_ESTIMATOR, parse_estimator, resolve_estimator
from ntkml.system_specs import family_of, is_bound, parse_system
from ntkml.systems.search import check_folds


def resolve_protocol(protocol: TrainProtocol, data: ImageDataset) -> TrainProtocol:
    """The protocol with its estimator resolved on the data, and the data's own name (``photos`` for ``folder:~/photos``).

    Raises:
        ValueError: more data than there are, an estimator that cannot be built on them or does not take the prior, or a run too
            short to learn anything.
    """
    available = len(data.train_inputs)
    if protocol.num_data > available:
        raise ValueError(f"--num-data {protocol.num_data}: {data.name} has {available} training images")
    protocol = replace(protocol, dataset=data.name)
    softmax = as_likelihood(protocol.likelihood).softmax
    if not is_bound(protocol.estimator):
        check_system(protocol, softmax)
        return with_own_steps(protocol)
    spec = resolve_estimator(parse_estimator(protocol.estimator), protocol.num_data, data.num_classes, softmax)
    if spec.structure == "kfac" and protocol.prior_kind == "diagonal":
        raise ValueError(f"{spec} takes a scalar or layerwise prior, not a diagonal one: use blockdiag, diag or ntk")
    _check_updates(protocol)
    blocks = num_blocks(protocol, data)
    if protocol.blocks_per_step > blocks:
        raise ValueError(
            f"--blocks-per-step {protocol.blocks_per_step}: {spec} has {counted(blocks, 'block')} of "
            f"{protocol.num_data} inputs"
        )
    return replace(protocol, estimator=str(spec))


def check_system(protocol: TrainProtocol, softmax: bool) -> None:
    """Raise ValueError where a system cannot learn what the protocol asks for, with its prior and likelihood."""
    name, family = protocol.estimator, family_of(protocol.estimator)
    if protocol.hparam not in family.learns:
        raise ValueError(f"{name} learns the {family.learns[0]} alone: write --hparam {family.learns[0]}")
    if family.learns_prior and protocol.prior_kind == "diagonal":
        raise ValueError(f"{name} takes a scalar or layerwise prior, not a diagonal one")
    if name != NO_ESTIMATOR and not softmax:
        raise ValueError(f"{name} is offered for --likelihood categorical, not for {protocol.likelihood}")
    if protocol.blocks_per_step != 1:
        raise ValueError(f"--blocks-per-step {protocol.blocks_per_step}: {name} has no blocks; leave the option out")
    if family.updates:
        _check_updates(protocol)
    _check_parts(protocol)


def _check_parts(protocol: TrainProtocol) -> None:
    """Raise ValueError where the data are too few for the parts that a system makes of them."""
    name, num_data = protocol.estimator, protocol.num_data
    system, data = parse_system(name), family_of(name).data
    if data == "shards" and system.count > num_data:
        raise ValueError(f"{name} needs a datum in every shard, there are {num_data}")
    if data == "train + validation" and num_data < 2:
        raise ValueError(f"{name} needs a training and a validation part: take --num-data 2 or more, got {num_data}")
    if system.family == "cross-validation":
        check_folds(num_data, system.count)


def _check_updates(protocol: TrainProtocol) -> None:
    if not protocol.num_updates(protocol.epochs):
        raise ValueError(
            f"in {counted(protocol.epochs, 'epoch')} no hyperparameter is updated (burn-in {protocol.burn_in}, update every "
            f"{protocol.update_every}): take more --epochs"
        )


def num_blocks(protocol: TrainProtocol, data: ImageDataset) -> int:
    """Blocks of a partition of the training data."""
    spec = parse_estimator(protocol.estimator)
    num_batches = 1 if spec.inputs is None else -(-protocol.num_data // spec.inputs)
    outputs = torch.zeros(1, data.num_classes)
    return num_batches * len(groups_of(as_likelihood(protocol.likelihood), spec.outputs, outputs))
