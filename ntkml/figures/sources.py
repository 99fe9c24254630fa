"""Which finished runs a figure is drawn from when the user names no file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkml.protocols.bound_figures import figure_names, load_figure
from ntkml.protocols.training_figures import load_pareto_figure, pareto_command
from ntkml.records.bound_grid import HPARAMS
from ntkml.records.finished_runs import Run, finished_runs
from ntkml.records.manifests import read_manifest

if TYPE_CHECKING:
    import pandas


def runs_for(name: str, results: Path) -> list[Run]:
    """The newest runs that hold what the figure ``name`` shows: for each hyperparameter one, and its other seeds.

    All have the data, model and size of the newest. A hyperparameter without such a run has none in the list. For
    "bound-grid" it is the newest run of all, and its other seeds.

    Raises:
        ValueError: no run holds the estimators; the message says what to run.
    """
    figure = load_figure(name) if name in figure_names() else None
    runs = [
        run
        for run in finished_runs(results, "bound-grid")
        if not figure or set(figure.on(run.settings["num_data"]).estimators) <= set(run.manifest["estimators"])
    ]
    if not runs:
        protocol = f" --protocol {name}" if figure else ""
        raise ValueError(
            f"no finished bound-grid run under {results} holds the estimators of {name}; "
            f"run: ntkml bound-grid --hparam prior{protocol} (and rotation), or name files with --csv"
        )
    hparams = HPARAMS if figure else [runs[0].settings["hparam"]]
    chosen = []
    for hparam in hparams:
        fitting = [run for run in runs if run.settings["hparam"] == hparam and run.setup == runs[0].setup]
        if fitting:
            chosen += seed_groups(fitting)[0]
    return chosen


def pareto_run_for(name: str, results: Path) -> Run:
    """The newest finished Pareto run of what the figure ``name`` shows.

    Raises:
        ValueError: there is none; the message says what to run.
    """
    hparam = load_pareto_figure(name).hparam
    runs = [run for run in finished_runs(results, "pareto") if hparam in ("", run.settings["hparam"])]
    if not runs:
        raise ValueError(
            f"no finished pareto run under {results} for {name}; "
            f"run: {pareto_command(hparam)}, or name a file with --csv"
        )
    return runs[0]


def comparisons(results: Path) -> list[Run]:
    """The newest finished comparison of every hyperparameter and data set below ``results``.

    Raises:
        ValueError: there is none.
    """
    newest: dict[tuple[str, str], Run] = {}
    for run in finished_runs(results, "compare"):
        newest.setdefault((run.settings["hparam"], run.settings["dataset"]), run)
    if not newest:
        raise ValueError(f"no finished comparison under {results}; run: ntkml compare --hparam prior (and rotation)")
    return [newest[key] for key in sorted(newest, key=lambda key: (key[1].partition("_")[0], key[0] != "prior"))]


def manifests_beside(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Manifests of row files, and a sentence for the caption on every file that has none."""
    manifests, notes = [], []
    for path in paths:
        manifest = path.parent / "manifest.json"
        if manifest.is_file():
            manifests.append(read_manifest(manifest))
        else:
            notes.append(f"No manifest beside {path.name}: its settings are known from the rows alone.")
    return manifests, notes


def unwritten(rows: pandas.DataFrame, manifests: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for the caption on every run whose manifest has estimators of which ``rows`` have none."""
    there = rows.groupby("run_id")["estimator"].agg(frozenset).to_dict()
    sentences = []
    for manifest in manifests:
        run_id = manifest.get("run_id")
        if absent := [name for name in manifest.get("estimators", {}) if name not in there.get(run_id, ())]:
            sentences.append(f"Not in the rows of run {run_id}, which computed them: {', '.join(absent)}.")
    return sentences


def seed_groups(newest_first: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in the seed alone, by seed and of each seed the newest; the group of the newest run comes first."""
    groups: dict[str, dict[int, Run]] = {}
    for run in newest_first:
        but_the_seed = json.dumps({**run.settings, "seed": None}, sort_keys=True)
        groups.setdefault(but_the_seed, {}).setdefault(run.settings["seed"], run)
    return [[group[seed] for seed in sorted(group)] for group in groups.values()]
