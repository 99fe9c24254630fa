"""Away from the CPU, on a GPU and on a simulated device: the rows of a run are the CPU's, and the host does not wait in the loops."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import ntkml
from ntkml.datasets import ImageDataset, load_dataset
from ntkml.learning import loop
from ntkml.learning.state import new_learner, restore, state_of
from ntkml.models import build_model
from ntkml.protocols.bound_grid import load_bound_grid
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.records.bound_grid import read_rows as read_grid_rows
from ntkml.records.train import MEASURED, read_rows
from ntkml.runs.bound_grid import run_bound_grid
from ntkml.runs.bound_setup import BoundGrid
from ntkml.runs.bound_setup import resolve_protocol as resolve_protocol_of_grid
from ntkml.runs.train import TrainRun, run_train
from ntkml.runs.train_checks import resolve_protocol
from ntkml.runs.train_journal import Pace
from ntkml.systems import System
from tests.devices import DEVICES, ON_A_GPU, device_called, replaced_parameters
from tests.factories import assert_same
from tests.objectives import everything
from tests.simulated_device import NAME, counted_reads

#: (device, model): the simulated one starts every operation in Python, so that its networks are small.
MODELS = [*(pytest.param("cuda", model, marks=ON_A_GPU) for model in ("resnet18-16", "mlp")), (NAME, "mininet")]

__all__ = ["replaced_parameters"]  # a fixture
pytestmark = pytest.mark.usefixtures("replaced_parameters")

DATA_PARTS = ("train_inputs", "train_targets", "test_inputs", "test_targets")
SETTINGS = {"num_data": 48, "epochs": 2, "batch_size": 16, "burn_in": 1, "update_every": 1, "hyper_steps": 2, "seed": 0}
#: Columns that say where a run was made.
PLACE = ("device",)


def images(num_data=48, size=8):
    stream = torch.Generator().manual_seed(0)
    x, y = torch.rand(num_data, 3, size, size, generator=stream), torch.arange(num_data) % 3
    return ImageDataset("made-up", x, y, x[:30], y[:30], 3, "made-up")


@contextmanager
def counted_waits(device: torch.device) -> Iterator[list[str]]:
    """What the host waits for inside the block."""
    if device.type == NAME:
        with counted_reads() as waits:
            yield waits
        return
    waits = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits += [str(warning.message) for warning in caught if "called a synchronizing" in str(warning.message)]


def rows_on(device, tmp_path, hparam, **settings):
    data = images()
    protocol = resolve_protocol(replace(load_train("train-digits", hparam), **(SETTINGS | settings)), data)
    run = TrainRun(protocol, data, device)
    path = run_train(run, tmp_path / device.type, lambda rows, total, done: rows, Pace(), print)
    return read_rows(path).drop(columns=[*MEASURED, *PLACE])


CASES = [
    ("prior", {"estimator": "ntk-12-tree"}),
    ("prior", {"estimator": "kfac-N-C", "optimizer": "sgd", "lr": 0.01}),
    ("prior", {"estimator": "blockdiag-12-C+kmeans", "prior_kind": "diagonal"}),
    ("prior", {"estimator": "diag-12-1+iid", "likelihood": "gaussian"}),
    ("prior", {"estimator": "ntk-12-C+greedy"}),
    ("prior", {"estimator": "none"}),
    ("prior", {"estimator": "sampled-2", "epochs": 1, "burn_in": 0}),  # a second update multiplies rounding by 1e4
    ("prior", {"estimator": "hoag"}),
    ("invariance", {"estimator": "ntk-12-1", "samples": 2}),
    ("invariance", {"estimator": "kfac-12-1", "samples": 2}),
    ("invariance", {"estimator": "kfac-N-1", "samples": 2}),
    ("invariance", {"estimator": "augerino", "samples": 2}),
    ("invariance", {"estimator": "partitioned-2", "samples": 2}),
]


@pytest.mark.parametrize(("hparam", "settings"), CASES)
@pytest.mark.parametrize(("device", "model"), MODELS)
def test_rows_are_those_of_the_cpu(device, model, hparam, settings, tmp_path):
    devices = (device_called(device), torch.device("cpu"))
    ours, theirs = (rows_on(device, tmp_path, hparam, model=model, **settings) for device in devices)
    numbers = ours.select_dtypes("number").columns
    others = [column for column in ours if column not in numbers and column != "prior_precisions"]
    assert ours[others].equals(theirs[others])
    for column in numbers:
        assert ours[column].tolist() == pytest.approx(theirs[column].tolist(), rel=2e-3, abs=2e-4, nan_ok=True), column


@pytest.mark.parametrize(("hparam", "estimator"), [("invariance", "partitioned-2"), ("prior", "hoag")])
@pytest.mark.parametrize("device", DEVICES)
def test_what_a_system_keeps_follows_the_weights(device, hparam, estimator):
    """A checkpoint is read to the CPU."""
    data, devices = images(), (torch.device("cpu"), device_called(device))
    protocol = replace(load_train("train-digits", hparam), model="mininet", estimator=estimator, **SETTINGS)
    protocol, state, found = replace(protocol, samples=2, burn_in=0), None, []
    for place in devices:
        model = build_model(protocol.model, data.input_shape, 3, generator_for(0, "init"))
        learner = new_learner(protocol, model, place)
        here = replace(data, **{part: getattr(data, part).to(place) for part in DATA_PARTS})
        if state is None:
            going = loop.steps(learner, here)
            next(record for record in going if record is not None)
            state = copy.deepcopy(state_of(learner))
        else:
            restore(learner, state)
            going = loop.steps(learner, here)
        found.append([record.train_loss for record in going if record is not None])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("hparam", ["prior", "rotation"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_bound_grid_is_that_of_the_cpu(device, hparam, tmp_path):
    few = ("ntk-6-1", "blockdiag-6-C", "kfac-N-C", "diag-6-tree", "ntk-4-C+kmeans", "ntk-6-1+iid")
    asked = load_bound_grid("digits", hparam)
    training = replace(asked.training, epochs=2, batch_size=6, samples=2)
    asked = replace(
        asked, num_data=12, samples=2, estimators=few, training=training, grid=replace(asked.grid, points=2)
    )
    data, found = load_dataset("digits"), []
    for place in (device_called(device), torch.device("cpu")):
        grid = BoundGrid(resolve_protocol_of_grid(asked, data), data, device=place)
        path = run_bound_grid(grid, tmp_path / place.type, lambda items, total, label: items)
        found.append(read_grid_rows(path))
    ours, theirs = (frame.drop(columns=["device", "seconds", "peak_bytes"]) for frame in found)
    assert set(found[0]["device"]) == {device}
    numbers = ours.select_dtypes("number").columns
    others = [column for column in ours if column not in numbers]
    assert ours[others].equals(theirs[others])
    for column in numbers:
        here, there = (frame[column].astype("float64").tolist() for frame in (ours, theirs))
        assert here == pytest.approx(there, rel=2e-3, abs=2e-4, nan_ok=True), column


@pytest.mark.parametrize("device", DEVICES)
def test_the_host_does_not_wait_in_the_steps_of_the_weights(device):
    data, device = images(), device_called(device)
    protocol = replace(load_train("train-digits", "prior"), model="resnet18-16", **SETTINGS)
    model = build_model(protocol.model, data.input_shape, 3, generator_for(0, "init"))
    learner = new_learner(protocol, model, device)
    x, y = data.train_inputs.to(device), data.train_targets.to(device)
    batch = torch.arange(len(x), device=device)
    assert len(batch) == len(x)
    loop._weight_step(learner, x, y, batch, 1e-3)  # the first makes the optimiser's state
    with counted_waits(device) as waits:
        for _ in range(3):
            loop._weight_step(learner, x, y, batch, 1e-3)
    assert not waits
    assert len(learner.unread) == 4
    with counted_waits(device) as waits:
        loop.settle(learner)
    assert waits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("model", "likelihood"), [("resnet18-16", "categorical"), ("mlp", "gaussian")])
def test_recorded_steps_are_the_steps(model, likelihood, precision, monkeypatch):
    """Over epochs with a smaller last batch, mirrored images and hyperparameters that move in between."""
    data, device, found = images(), torch.device("cuda"), []
    data = replace(data, **{part: getattr(data, part).to(device) for part in DATA_PARTS})
    protocol = replace(load_train("train-digits", "prior"), model=model, **SETTINGS | {"batch_size": 20, "epochs": 3})
    protocol = replace(protocol, likelihood=likelihood, estimator="ntk-12-1", flip=True)
    for recorded in (True, False):
        monkeypatch.setattr(System, "repeats_itself", recorded)
        network = build_model(model, data.input_shape, 3, generator_for(0, "init"))
        learner = new_learner(protocol, network, device, precision=precision)
        records = list(loop.learn(learner, data))
        assert bool(learner.recorded) is recorded
        found.append((records, learner.objective.state_dict(), network.state_dict()))
    (ours, *states), (theirs, *others) = found
    tolerance = 1e-4 if precision == "float32" else 2e-2
    for one, other in zip(ours, theirs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance)
        if one.log_marginal_likelihood is not None:
            assert one.log_marginal_likelihood == pytest.approx(other.log_marginal_likelihood, rel=tolerance)
    for here, there in zip(states, others, strict=True):
        for name, value in here.items():
            if isinstance(value, torch.Tensor):
                assert_same(value, there[name], tolerance)


@pytest.mark.parametrize("estimator", ["ntk-12-1", "ntk-12-tree", "kfac-12-1", "diag-12-C"])
@pytest.mark.parametrize(("device", "model"), MODELS)
def test_the_host_does_not_wait_for_the_chunks_of_an_estimate(device, model, estimator):
    """What it waits for is counted by block (a draw, a check, a factorisation): as often with one chunk as with many."""
    data, device = images(), device_called(device)
    network = build_model(model, data.input_shape, 3, generator_for(0, "init")).to(device)
    x, y = data.train_inputs.to(device), data.train_targets.to(device)
    augmentation = ntkml.AffineInvariance(2, torch.full((6,), 0.1))
    objective = ntkml.MarginalLikelihood(network, estimator, augmentation=augmentation, chunk=12).to(device)
    counts = []
    for chunk in (12, 12, 4):  # the first makes what is kept
        objective.chunk = chunk
        with counted_waits(device) as waits:
            objective.backward(x, y, 1, torch.Generator().manual_seed(0))
        counts.append(len(waits))
    assert counts[1] == counts[2] > 0


@pytest.mark.parametrize("device", DEVICES)
def test_an_objective_is_made_where_the_weights_lie(device):
    place, numbers = device_called(device), []
    x = images().train_inputs[:6]
    y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for at in (place, torch.device("cpu")):
        network = build_model("mlp", (3, 8, 8), 3, generator_for(0, "init")).to(at)
        views = ntkml.AffineInvariance(2, torch.full((6,), 0.1))
        objective = ntkml.MarginalLikelihood(network, "ntk-3-C", "gaussian", augmentation=views)
        assert {parameter.device.type for parameter in objective.parameters()} == {at.type}
        numbers.append({name: number.cpu() for name, number in everything(objective, x.to(at), y.to(at)).items()})
    for name, expected in numbers[1].items():
        assert_same(numbers[0][name], expected, 1e-4)


@contextmanager
def default_device(device: torch.device) -> Iterator[None]:
    """``torch.set_default_device``, which leaves generators on the CPU."""
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "estimator", ["ntk-N-1", "ntk-4-1+kmeans", "ntk-4-C+greedy", "ntk-4-tree+iid", "kfac-4-1+class"]
)
@pytest.mark.parametrize("away", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_new_tensors_may_be_made_on_the_device(device, away, estimator):
    """Whether the weights lie there or not."""
    device, classes, found = device_called(device), torch.arange(12) % 3, []
    place = device if away else torch.device("cpu")
    network = build_model("mlp", (3, 8, 8), 3, generator_for(0, "init")).to(place)
    labels = "tree" in estimator or "class" in estimator
    likelihood, y = ("categorical", classes) if labels else (ntkml.Gaussian(0.5), torch.eye(3)[classes])
    data = images().train_inputs[:12].to(place), y.to(place)
    for default in (torch.device("cpu"), device):
        with default_device(default):
            found.append(estimates(network, *data, estimator, likelihood))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def estimates(network, x, y, estimator, likelihood):
    """By the function, and by an objective on affine views whose blocks are drawn with unequal probabilities."""
    generator, views = torch.Generator("cpu").manual_seed(0), ntkml.AffineInvariance(2)
    value = ntkml.log_marginal_likelihood(network, x, y, estimator, 2.0, likelihood, 1, generator)
    objective = ntkml.MarginalLikelihood(network, estimator, likelihood, augmentation=views)
    partition = objective.resample(x, y, generator)
    objective.partition = partition.weighted(1 + torch.arange(len(partition)))
    drawn = objective.backward(x, y, 2, generator)
    return [float(value.total), float(drawn.total), *views.eta.grad.tolist()]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda ours, theirs: ours + theirs,
        lambda ours, theirs: theirs @ ours,
        lambda ours, theirs: torch.stack([ours.sum(), theirs.sum()]),
        lambda ours, theirs: theirs.sum().add_(ours.sum()),
        lambda ours, theirs: theirs[ours.long()],
        lambda ours, theirs: ours.index_put_((theirs.long(),), theirs),
        lambda ours, theirs: torch.where(theirs > 0, ours, ours),
    ],
)
def test_a_mixture_of_devices_is_refused(mixed):
    """The simulated device would show nothing if it let everything pass."""
    ours, theirs = torch.ones(3, device=device_called(NAME)), torch.ones(3)
    with pytest.raises(RuntimeError, match="two devices"):
        mixed(ours, theirs)


def test_what_is_allowed_on_a_gpu_is_allowed_on_the_simulated_one():
    ours = torch.ones(3, device=device_called(NAME))
    assert (ours + torch.tensor(2.0)).tolist() == [3, 3, 3]
    assert ours[torch.tensor([0, 2])].shape == (2,)
    assert torch.arange(2, 8, 3, device=ours.device).tolist() == [2, 5]
    assert torch.eye(2, device=ours.device).tolist() == [[1, 0], [0, 1]]


def test_numbers_of_the_device_come_from_no_generator_of_the_cpu():
    with pytest.raises(RuntimeError, match="generator of the CPU"):
        torch.randn(3, generator=torch.Generator(), device=device_called(NAME))


def test_reads_of_the_host_are_counted():
    ours = torch.eye(3, device=device_called(NAME))
    with counted_reads() as reads:
        assert float(ours.sum()) == 3
        assert ours[0].tolist() == [1, 0, 0]
        assert bool((ours >= 0).all())
        assert ours[ours > 0].shape == (3,)
        torch.linalg.cholesky(ours)
        torch.linalg.eigvalsh(ours)
    assert len(reads) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bfloat16_trains_on_a_gpu(tmp_path):
    data = images()
    protocol = replace(load_train("train-digits", "prior"), model="resnet18-16", **SETTINGS, estimator="ntk-12-tree")
    run = TrainRun(resolve_protocol(protocol, data), data, torch.device("cuda"), precision="bf16")
    path = run_train(run, tmp_path, lambda rows, total, done: rows, Pace(), print)
    assert read_rows(path)["log_marginal_likelihood"].notna().all()
