"""The protocol files hold the settings of the paper."""

import math
import tomllib

import pytest

from ntkml.protocols import compare as compare_protocols
from ntkml.protocols import pareto as pareto_protocols
from ntkml.protocols import sweep as sweep_protocols
from ntkml.protocols import tables, training_figures
from ntkml.protocols import train as train_protocols
from ntkml.protocols.bound_figures import figure_names, load_figure
from ntkml.protocols.bound_grid import Grid, bound_grid_names, load_bound_grid
from ntkml.records.bound_grid import HPARAMS
from ntkml.registry import FIGURES
from ntkml.specs import parse_estimator, resolve_estimator

PAPER_FIGURES = ["figure-3", "figure-4", "figure-5", "figure-6", "figure-12"]


def test_known_names():
    assert bound_grid_names() == ["digits", *PAPER_FIGURES, "mnist-bounds"]
    assert figure_names() == PAPER_FIGURES
    assert set(PAPER_FIGURES) <= set(FIGURES)


@pytest.mark.parametrize("name", ["mnist-bounds", *PAPER_FIGURES])
@pytest.mark.parametrize("variant", tables.VARIANTS)
def test_the_papers_grids(name, variant):
    prior, rotation = (load_bound_grid(name, hparam, variant) for hparam in ("prior", "rotation"))
    assert prior.grid == Grid(start=1e-4, stop=1e4, points=100, spacing="log10")
    assert rotation.grid == Grid(start=0.0, stop=math.pi, points=100, spacing="linear")
    assert (prior.dataset, rotation.dataset) == ("mnist", "mnist_r180")
    assert rotation.samples == rotation.training.samples == 30
    for protocol in (prior, rotation):
        assert (protocol.model, protocol.num_data) == ("mininet", 1000)
        assert protocol.seed == {"paper": 0, "code": 711}[variant]
        training = protocol.training
        assert (training.epochs, training.batch_size, training.lr, training.lr_min) == (100, 250, 1e-3, 1e-4)
        assert (training.optimizer, training.prior_precision) == ("adam", 1.0)
        # Weights at fixed hyperparameters are not what the paper has; every caption has to say so.
        assert any("MAP" in note for note in protocol.notes)
    assert (prior.training.rotation, rotation.training.rotation) == (0.0, math.pi)


def test_the_embedded_default():
    prior, rotation = (load_bound_grid("digits", hparam) for hparam in ("prior", "rotation"))
    assert (prior.dataset, rotation.dataset) == ("digits", "digits_r180")
    assert (prior.grid.points, rotation.grid.points, rotation.samples) == (40, 13, 8)
    assert prior.estimators == rotation.estimators
    assert {"ntk-N-C", "kfac-N-C", "ntk-100-tree"} <= set(prior.estimators)


@pytest.mark.parametrize("name", bound_grid_names())
@pytest.mark.parametrize("hparam", HPARAMS)
def test_every_estimator_is_a_name_on_the_data(name, hparam):
    protocol = load_bound_grid(name, hparam)
    assert len(set(protocol.estimators)) == len(protocol.estimators)
    for estimator in protocol.estimators:
        assert str(resolve_estimator(parse_estimator(estimator), protocol.num_data, 10)) == estimator


def test_one_run_of_mnist_bounds_serves_every_figure():
    held = set(load_bound_grid("mnist-bounds", "prior").estimators)
    for name in figure_names():
        assert {estimator for facet in load_figure(name).facets for estimator in facet.estimators} <= held


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("figure-4", (10, 20, 50, 100, 250, 500)),
        ("figure-5", (10, 20, 50, 100, 250, 500, "N")),
        ("figure-6", (10, 20, 50, 100, 250, 500, "N")),
    ],
)
def test_the_papers_sizes(name, sizes):
    pattern = {"figure-4": "ntk-{}-C", "figure-5": "blockdiag-{}-C", "figure-6": "ntk-{}-1"}[name]
    assert {pattern.format(size) for size in sizes} | {"ntk-N-C"} <= set(load_bound_grid(name, "prior").estimators)


def test_better_partitions_are_drawn_but_not_asked_for():
    figure = load_figure("figure-12")
    assert [facet.title for facet in figure.facets if facet.optional] == ["k-means (ours)", "greedy (ours)"]
    assert not any("kmeans" in name or "greedy" in name for name in load_bound_grid("figure-12", "prior").estimators)


@pytest.mark.parametrize(
    ("name", "prior", "rotation"),
    [
        ("figure-3", ((1e-2, 1e3), (-6, -0.5)), ((0, math.pi), None)),
        ("figure-4", ((1e-2, 5e2), (-6, -0.5)), ((0, math.pi), (-6, -1.1))),
        ("figure-5", ((1e-2, 5e2), (-7, -0.5)), ((0, math.pi), (-7, -1.1))),
        ("figure-6", ((1e-2, 5e2), (-6, -0.5)), ((0, math.pi), (-6, -1.1))),
    ],
)
def test_the_papers_axes(name, prior, rotation):
    axes = load_figure(name).axes
    assert ((axes["prior"].xlim, axes["prior"].ylim), (axes["rotation"].xlim, axes["rotation"].ylim)) == (
        prior,
        rotation,
    )
    assert (axes["prior"].xscale, axes["rotation"].xscale) == ("log", "linear")
    assert axes["rotation"].broken == (name == "figure-3")


@pytest.mark.parametrize(
    "grid",
    [
        Grid(start=1e-4, stop=1e4, points=9, spacing="log10"),
        Grid(start=0.3, stop=70.0, points=7, spacing="log10"),  # 10^log10(0.3) is another number
        Grid(start=0.0, stop=math.pi, points=7),
    ],
)
def test_a_grid_rises_evenly_and_its_ends_are_exact(grid):
    values = grid.values()
    assert (values[0], values[-1], len(values)) == (grid.start, grid.stop, grid.points)
    steps = [math.log10(value) for value in values] if grid.spacing == "log10" else values
    assert [b - a for a, b in zip(steps, steps[1:], strict=False)] == pytest.approx(
        [(steps[-1] - steps[0]) / (grid.points - 1)] * (grid.points - 1)
    )


def test_a_grid_of_one_point_is_its_start():
    assert Grid(start=1.0, stop=2.0, points=1).values() == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spacing": "cubic"}, "spacing of a grid must be 'linear' or 'log10', got 'cubic'"),
        ({"points": 0}, "a grid needs at least 1 point, got 0"),
        ({"start": 3.0}, "start must lie below stop, got 3 and 2"),
        ({"start": 0.0, "spacing": "log10"}, "a log10 grid starts above 0, got 0"),
    ],
)
def test_an_impossible_grid_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Grid(**({"start": 1.0, "stop": 2.0, "points": 3} | settings))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_bound_grid("figure-33", "prior"), "unknown protocol 'figure-33'; did you mean 'figure-3'"),
        (lambda: load_bound_grid("figure-3", "prio"), "unknown hyperparameter 'prio'; did you mean 'prior'"),
        (lambda: load_bound_grid("figure-3", "prior", "cod"), "unknown protocol variant 'cod'; did you mean 'code'"),
        (
            lambda: training_figures.load_trajectory_figure("figure-3"),
            "unknown protocol 'figure-3'; did you mean 'figure-",
        ),
        (
            lambda: training_figures.load_pareto_figure("figure-8"),
            "unknown Pareto figure 'figure-8'; did you mean 'figure-1'",
        ),
        (lambda: load_bound_grid("figure-8", "prior"), "unknown protocol 'figure-8'; did you mean 'figure-"),
        (lambda: load_figure("digits"), "unknown figure of a bound grid 'digits'; known: figure-3"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_files_of_other_kinds_have_their_own_readers():
    assert training_figures.trajectory_names() == ["figure-8", "figure-9", "figure-10", "figure-11"]
    assert training_figures.pareto_names() == ["figure-1", "figure-13", "pareto"]
    every = {*bound_grid_names(), *train_protocols.train_names(), *training_figures.trajectory_names()}
    every |= set(training_figures.subset_names())
    every |= {*training_figures.pareto_names(), *pareto_protocols.pareto_names(), *sweep_protocols.swept_names()}
    every |= set(compare_protocols.compare_names())
    assert every == {*tables.protocol_names(), "pareto"}
    known = {*figure_names(), *training_figures.trajectory_names(), *training_figures.pareto_names()}
    known |= set(training_figures.subset_names())
    assert known | {"figure-2", "bound-grid", "comparison"} == set(FIGURES)


@pytest.mark.parametrize(
    ("name", "hparam"),
    [("figure-8", "invariance"), ("figure-9", "invariance"), ("figure-10", "prior"), ("figure-11", "prior")],
)
def test_trajectories_show_what_the_paper_shows(name, hparam):
    figure = training_figures.load_trajectory_figure(name)
    assert (figure.hparam, figure.dataset) == (hparam, train_protocols.load_train("train-mnist", hparam).dataset)
    sizes = ("10", "20", "50", "100", "250", "500")
    if name in ("figure-8", "figure-10"):
        wanted = {"ntk-N-C", "blockdiag-N-C", "kfac-N-C", "diag-N-C", *(f"ntk-{size}-C" for size in sizes)}
    else:
        pairs = [(size, outputs) for size in (*sizes, "N") for outputs in ("1", "tree")]
        wanted = {
            "ntk-N-C",
            *(f"blockdiag-{size}-C" for size in sizes),
            *(f"ntk-{size}-{outputs}" for size, outputs in pairs),
        }
    assert set(figure.estimators) == wanted
    for facet in figure.facets:
        assert facet.estimators[0] == "ntk-N-C"


def test_pareto_figures_say_what_was_learned():
    assert training_figures.load_pareto_figure("figure-1").hparam == "invariance"
    prior = training_figures.load_pareto_figure("figure-13")
    assert (prior.hparam, prior.axes.xscale) == ("prior", "log")
    assert training_figures.load_pareto_figure("pareto").hparam == ""


def test_protocols_are_found_where_the_package_has_no_experiments(monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("No module named 'ntkml.experiments'")

    # As in a checkout, whose folder shadows an installed package.
    monkeypatch.setattr("importlib.resources.files", missing)
    folder = tables.experiments_folder()
    assert tomllib.loads(folder.joinpath("figure-3.toml").read_text(encoding="utf-8"))["extends"] == "mnist-bounds"
