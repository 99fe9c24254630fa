"""``ntkml train --likelihood``: what its rows hold, what is refused, and how it goes on."""

from functools import partial

import pytest
import torch

from ntkml.learning import loop
from ntkml.records import train as train_records

SMALL = ("--num-data", 60, "--epochs", 4, "--burn-in", 2, "--update-every", 1, "--hyper-steps", 2, "--device", "cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(in_empty_folder):
    """``ntkml train --hparam prior ...``"""
    return partial(in_empty_folder, "train", "--hparam", "prior", *SMALL)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_rows_hold_likelihood_noise_and_no_calibration(run, tmp_path, only, likelihood):
    assert run("--likelihood", likelihood, "--estimator", "ntk-20-1")[0] == 0
    frame = train_records.read_rows(only(tmp_path, "rows.csv"))
    assert set(frame["likelihood"]) == {likelihood}
    assert frame["certified"].all()
    assert frame["test_ece"].isna().all()
    assert 0 <= frame["test_accuracy"].iloc[-1] <= 1
    noise = frame["observation_noise"]
    if likelihood == "gaussian":
        assert noise.iloc[0] == 1.0
        assert (noise.iloc[1:] != 1.0).all()
    else:
        assert noise.isna().all()


def test_a_gaussian_run_goes_on_bit_by_bit(run, tmp_path, monkeypatch, only):
    settings = ("--likelihood", "gaussian", "--estimator", "ntk-20-C")
    assert run(*settings)[0] == 0
    step, calls = loop._hyper_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_hyper_step", interrupted)
        assert run(*settings, "--out", "again", "--checkpoint-every", 1)[0] == 130
    assert run(*settings, "--out", "again")[0] == 0
    texts, weights = [], []
    for out in ("results", "again"):
        frame = train_records.read_rows(only(tmp_path / out, "rows.csv"))
        texts.append(frame.drop(columns=list(train_records.MEASURED)).to_csv(index=False))
        weights.append(torch.load(only(tmp_path / out, "weights.pt"), weights_only=True))
    assert texts[0] == texts[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        ("ntk-20-tree", "here the outputs are independent and 1 is certified: write 1"),
        ("ntk-20-1+class", "+class needs class labels; use +kmeans, +greedy or no grouping"),
    ],
)
def test_what_has_no_meaning_without_a_softmax_is_one_line(run, tmp_path, likelihood, estimator, words):
    code, _, error = run("--likelihood", likelihood, "--estimator", estimator)
    assert (code, words in error, error.count("\n")) == (2, True, 1), error
    assert not list(tmp_path.iterdir())
