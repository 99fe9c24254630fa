"""Steps of the weights: losses that are read later say the same, and bfloat16 stays out of everything else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ntkml.datasets import load_dataset, subset
from ntkml.learning import loop
from ntkml.learning.checkpoints import read_checkpoint
from ntkml.learning.loop import learn, steps
from ntkml.learning.state import new_learner, restore
from ntkml.learning.trouble import DivergenceError, TrainingMemoryError
from ntkml.machine.processes import Processes
from ntkml.models import build_model
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.runs.train import TrainRun
from ntkml.runs.train_journal import Journal, Pace
from tests.recorded_graphs import Recorder, replace_cuda

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {"num_data": 60, "epochs": 2, "batch_size": 7, "burn_in": 1, "update_every": 1, "hyper_steps": 2}


def problem(hparam="prior", precision="float32", **settings):
    asked = {"estimator": "ntk-20-tree"} | ({"samples": 2} if hparam == "invariance" else {}) | settings
    protocol = replace(load_train("train-digits", hparam), **(SETTINGS | asked))
    data = subset(load_dataset(protocol.dataset), 60, generator_for(protocol.seed, "data"))
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(protocol.seed, "init"))
    return new_learner(protocol, model, torch.device("cpu"), precision=precision), data


def untimed(records):
    return [replace(record, seconds_weights=0.0, seconds_hyper=0.0, seconds_eval=0.0) for record in records]


@pytest.fixture
def read_later(monkeypatch):
    """As on a GPU: the host does not wait for the losses."""

    def switch():
        monkeypatch.setattr(loop, "_reads_at_once", lambda device: False)
        monkeypatch.setattr(loop, "UNREAD_STEPS", 4)

    return switch


def test_losses_that_are_read_later_give_the_same_records(read_later):
    expected = untimed(learn(*problem()))
    read_later()
    assert untimed(learn(*problem())) == expected


def test_a_run_that_is_left_with_unread_losses_goes_on_bit_by_bit(read_later, tmp_path):
    expected = untimed(learn(*problem()))
    read_later()
    learner, data = problem()
    running = steps(learner, data)
    for _ in range(6):  # of nine batches; four losses were read
        next(running)
    assert len(learner.unread) == 2
    Journal(tmp_path, learner, {}, {}, {"environment": {}, "resumed": []}, Pace()).keep()
    fresh, _ = problem()
    restore(fresh, read_checkpoint(tmp_path / "checkpoint.pt", pytest.fail)["learner"])
    assert untimed(learn(fresh, data)) == expected


def test_a_loss_that_diverged_is_named_by_its_own_step_when_it_is_read(read_later, monkeypatch):
    read_later()
    learner, data = problem()
    running = steps(learner, data)
    next(running)
    with torch.no_grad():
        learner.objective.model[0].weight.fill_(torch.nan)
    with pytest.raises(DivergenceError, match=r"epoch 1, step 2: the loss is nan at learning rate 0.00099"):
        list(running)
    assert learner.position.step == 3  # it was noticed with the fourth


@pytest.mark.parametrize("hparam", ["prior", "invariance"])
def test_bfloat16_is_for_the_weights_steps_alone(hparam):
    learner, data = problem(hparam, "bf16", estimator="kfac-20-1")
    seen = {"weights": set(), "hyper": set(), "eval": set()}
    objective, phase = learner.objective, ["weights"]

    def note(module, given, output):
        seen[phase[0]].add((given[0].dtype, output.dtype))

    objective.model[0].register_forward_hook(note)  # its input: the views, never rounded
    objective.model[3].register_forward_hook(note)  # behind a convolution
    for method in ("resample", "backward", "cached_backward"):
        watch(objective, method, "hyper", phase)
    evaluate = loop.evaluate
    phase_of_evaluation = []

    def evaluated(*given):
        phase[0] = "eval"
        phase_of_evaluation.append(1)
        scores = evaluate(*given)
        phase[0] = "weights"
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluated)
        list(learn(learner, data))
    full = {(torch.float32, torch.float32)}
    assert seen["weights"] == {(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)}
    assert seen["hyper"] == seen["eval"] == full
    assert phase_of_evaluation
    assert all(weight.dtype == torch.float32 for weight in objective.model.parameters())


def watch(objective, method, name, phase):
    inner = getattr(objective, method)

    def watched(*given, **named):
        before, phase[0] = phase[0], name
        try:
            return inner(*given, **named)
        finally:
            phase[0] = before

    setattr(objective, method, watched)


def test_bfloat16_learns_nearly_what_float32_does_under_another_run_id():
    full, half = (list(learn(*problem(precision=precision))) for precision in ("float32", "bf16"))
    for ours, theirs in zip(full, half, strict=True):
        assert ours.train_loss != theirs.train_loss
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=0.02)
    learner, data = problem()
    run = TrainRun(learner.protocol, data, torch.device("cpu"))
    assert replace(run, precision="bf16").run_id != run.run_id
    assert "precision" not in run.settings  # earlier runs keep their ids


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": True},
        {"optimizer": "sgd", "likelihood": "gaussian", "estimator": "ntk-20-1"},
        {"estimator": "none"},
    ],
    ids=str,
)
def test_recorded_steps_are_the_steps(settings, precision, read_later, monkeypatch):
    expected = untimed(learn(*problem(precision=precision, **settings)))
    read_later()
    graphs = []
    replace_cuda(monkeypatch, graphs)
    monkeypatch.setattr(loop, "_records", lambda device: True)
    learner, data = problem(precision=precision, **settings)
    assert untimed(learn(learner, data)) == expected
    assert [graph.replays for graph in graphs] == [16, 2]  # 8 batches of 7 and one of 4, two epochs
    assert len(learner.recorded) == 2


def test_a_step_that_cannot_be_recorded_says_why(monkeypatch):
    """Leaving a recording that an error has broken raises a second one."""
    replace_cuda(monkeypatch, [])
    monkeypatch.setattr(loop, "_records", lambda device: True)
    for first, raised, words in (
        (
            RuntimeError("operation not permitted"),
            RuntimeError,
            "cannot be recorded on this GPU: operation not permitted",
        ),
        (RuntimeError("CUDA out of memory"), TrainingMemoryError, "out of memory in epoch 1, step 1"),
    ):

        def broken(self, *given, error=first):
            try:
                raise error
            except RuntimeError:
                raise RuntimeError("failed due to a previous error during capture") from None

        monkeypatch.setattr(Recorder, "__torch_dispatch__", broken)
        with pytest.raises(raised, match=words):
            list(learn(*problem()))


@pytest.mark.parametrize(
    ("hparam", "estimator", "repeats"),
    [
        ("prior", "ntk-20-1", True),
        ("prior", "none", True),
        ("prior", "hoag", True),
        ("prior", "sampled-2", True),
        ("invariance", "ntk-20-1", False),
        ("invariance", "none", True),
        ("invariance", "fixed-augmentation-180", False),
        ("invariance", "augerino", False),
        ("invariance", "partitioned-2", False),
    ],
)
def test_steps_are_recorded_where_nothing_is_drawn_inside(hparam, estimator, repeats):
    system = problem(hparam, estimator=estimator)[0].system
    assert system.repeats_itself is repeats
    system.processes = Processes(0, 2)
    assert not system.repeats_itself


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown precision 'fp16' of the weights' steps; known: float32, bf16"):
        problem(precision="fp16")
