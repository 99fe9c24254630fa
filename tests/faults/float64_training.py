"""A toy training in float64 by all processes that were started together; every one writes what it ends with."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch

from ntkml.datasets import load_dataset, subset
from ntkml.learning.loop import learn
from ntkml.learning.state import new_learner
from ntkml.machine.processes import launched_processes
from ntkml.models import build_model
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for

BLOCKS, COUNT = 4, 40


def main(arguments: list[str]) -> None:
    """Arguments: what is learned, and the estimator."""
    hparam, estimator = arguments
    torch.set_num_threads(1)
    protocol = replace(
        load_train("train-digits", hparam),
        **{"num_data": COUNT, "estimator": estimator, "epochs": 3, "batch_size": 15, "burn_in": 2, "update_every": 1},
        **{"hyper_steps": 2, "samples": 2 if hparam == "invariance" else 1, "blocks_per_step": BLOCKS},
    )
    data = subset(load_dataset(protocol.dataset), COUNT, generator_for(0, "data"))
    test_x, test_y = data.test_inputs[:20].double(), data.test_targets[:20]
    x, y = data.train_inputs.double(), data.train_targets
    double = SimpleNamespace(
        train_inputs=x, train_targets=y, test_inputs=test_x, test_targets=test_y, num_classes=data.num_classes
    )
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(0, "init")).double()
    with launched_processes(torch.device("cpu")) as processes:
        learner = new_learner(protocol, model, torch.device("cpu"), processes=processes)
        objective = learner.objective.double()
        first = objective.backward(x, y, BLOCKS, generator_for(0, "blocks"), processes)
        gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        records = [(r.train_loss, r.log_marginal_likelihood or 0.0) for r in learn(learner, double)]
    kept = {"first": first.total, "gradients": gradients, "records": records}
    kept |= {"weights": model.state_dict(), "hyperparameters": dict(objective.named_parameters())}
    torch.save(kept, f"process-{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main(sys.argv[1:])
