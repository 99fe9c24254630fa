"""On a GPU: the rows of a run are those of the CPU, and the host does not wait in the weights' steps."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import ntkml
from ntkml import learning
from ntkml.datasets import ImageDataset
from ntkml.learning_state import new_learner
from ntkml.models import build_model
from ntkml.randomness import generator_for
from ntkml.runs.train import TrainRun, resolve_protocol, run_train
from ntkml.runs.train_journal import Pace
from ntkml.train_protocols import load_train
from ntkml.train_records import MEASURED, read_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SETTINGS = {"num_data": 48, "epochs": 2, "batch_size": 16, "burn_in": 1, "update_every": 1, "hyper_steps": 2, "seed": 0}
#: Columns that say where a run was made.
PLACE = ("device",)


def images(num_data=48, size=16):
    stream = torch.Generator().manual_seed(0)
    x, y = torch.rand(num_data, 3, size, size, generator=stream), torch.arange(num_data) % 3
    return ImageDataset("made-up", x, y, x[:30], y[:30], 3, "made-up")


def rows_on(device, tmp_path, hparam, **settings):
    data = images()
    protocol = resolve_protocol(replace(load_train("train-digits", hparam), **(SETTINGS | settings)), data)
    run = TrainRun(protocol, data, torch.device(device))
    path = run_train(run, tmp_path / device, lambda rows, total, done: rows, False, Pace(), print)
    return read_rows(path).drop(columns=[*MEASURED, *PLACE])


CASES = [
    ("prior", {"estimator": "ntk-12-tree"}),
    ("prior", {"estimator": "kfac-N-C", "optimizer": "sgd", "lr": 0.01}),
    ("prior", {"estimator": "blockdiag-12-C+kmeans", "prior_kind": "diagonal"}),
    ("prior", {"estimator": "diag-12-1+iid", "likelihood": "gaussian"}),
    ("prior", {"estimator": "none"}),
    ("invariance", {"estimator": "ntk-12-1", "samples": 2}),
    ("invariance", {"estimator": "kfac-12-1", "samples": 2}),
]


@pytest.mark.parametrize(("hparam", "settings"), CASES)
@pytest.mark.parametrize("model", ["resnet18-16", "mlp"])
def test_rows_are_those_of_the_cpu(hparam, settings, model, tmp_path):
    ours, theirs = (rows_on(device, tmp_path, hparam, model=model, **settings) for device in ("cuda", "cpu"))
    numbers = ours.select_dtypes("number").columns
    others = [column for column in ours if column not in numbers and column != "prior_precisions"]
    assert ours[others].equals(theirs[others])
    for column in numbers:
        assert ours[column].tolist() == pytest.approx(theirs[column].tolist(), rel=2e-3, abs=2e-4, nan_ok=True), column


def test_the_host_does_not_wait_in_the_steps_of_the_weights():
    data = images()
    protocol = replace(load_train("train-digits", "prior"), model="resnet18-16", **SETTINGS)
    device = torch.device("cuda")
    model = build_model(protocol.model, data.input_shape, 3, generator_for(0, "init"))
    learner = new_learner(protocol, model, device)
    x, y = data.train_inputs.to(device), data.train_targets.to(device)
    batch = torch.arange(len(x), device=device)
    learning._weight_step(learner, x, y, batch, 1e-3)  # the first makes the optimiser's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            learning._weight_step(learner, x, y, batch, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(learner.unread) == 4
    learning.settle(learner)


@pytest.mark.parametrize("estimator", ["ntk-12-1", "ntk-12-tree", "kfac-12-1", "diag-12-C"])
def test_the_host_does_not_wait_for_the_chunks_of_an_estimate(estimator):
    """What it waits for is counted by block (a draw, a check, a factorisation): as often with one chunk as with many."""
    data, device = images(), torch.device("cuda")
    model = build_model("resnet18-16", data.input_shape, 3, generator_for(0, "init")).to(device)
    x, y = data.train_inputs.to(device), data.train_targets.to(device)
    augmentation = ntkml.AffineInvariance(2, torch.full((6,), 0.1))
    objective = ntkml.MarginalLikelihood(model, estimator, augmentation=augmentation, chunk=12).to(device)
    counts = []
    for chunk in (12, 12, 6, 3):  # the first makes what is kept
        objective.chunk = chunk
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                objective.backward(x, y, 1, torch.Generator().manual_seed(0))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing" in str(warning.message) for warning in caught))
    assert counts[1] == counts[2] == counts[3] > 0


def test_bfloat16_trains_on_a_gpu(tmp_path):
    data = images()
    protocol = replace(load_train("train-digits", "prior"), model="resnet18-16", **SETTINGS, estimator="ntk-12-tree")
    run = TrainRun(resolve_protocol(protocol, data), data, torch.device("cuda"), precision="bf16")
    path = run_train(run, tmp_path, lambda rows, total, done: rows, False, Pace(), print)
    assert read_rows(path)["log_marginal_likelihood"].notna().all()
