"""Which training runs a subset figure is drawn from, and their points.

All finished runs below the results that follow the figure's training protocol or one that reduces it are looked at. No
settings are mixed: what is drawn together is of one data set (and its transformations) and changed the same settings of one
protocol in the same way, the number of training images left out. The whole protocol on the paper's data comes first; where
there is none, the newest other setting is drawn, and the caption says what was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from ntkml.dataset_names import split_name
from ntkml.machine.messages import counted
from ntkml.protocols.run_settings import RunSettings, settings_of, versions_of
from ntkml.protocols.training_figures import SubsetFigure
from ntkml.records import train as train_records
from ntkml.records.finished_runs import Run, finished_runs
from ntkml.records.notes import merged, taken_apart

#: Settings that say how large a run is, and so differ from point to point.
SIZE = "num_data"


@dataclass(frozen=True)
class SubsetRuns:
    """The last recorded values of every run, one row each, and what the caption must say.

    Columns of ``points``: estimator, structure, inputs, outputs, certified, transformation, seed, num_data, epochs, model,
    num_params and the figure's quantity. ``source``: the data set without a transformation. ``paths``: the files read.
    """

    points: pandas.DataFrame
    source: str
    settings: RunSettings
    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def subset_runs(figure: SubsetFigure, results: Path) -> SubsetRuns:
    """The runs to draw, by the rule above.

    Raises:
        ValueError: there is none; the message says what to run.
    """
    groups: dict[tuple[str, RunSettings], list[Run]] = {}
    for run in finished_runs(results, "train"):  # newest first
        followed = settings_of(run.manifest)
        if followed is None or followed.protocol not in versions_of(figure.training):
            continue
        if run.settings["estimator"] in figure.estimators:
            source, _ = split_name(str(run.settings["dataset"]))
            groups.setdefault((source, followed.without(SIZE)), []).append(run)
    if not groups:
        raise ValueError(
            f"no finished training run under {results} for {figure.name}; run: ntkml train --protocol {figure.training} "
            f"--estimator {figure.estimators[0]} --num-data 1000 (and others), or --protocol {figure.training}-reduced"
        )
    whole = (figure.plain, RunSettings(figure.training, "paper", ()))
    key = whole if whole in groups else next(iter(groups))
    chosen: dict[tuple[Any, ...], Run] = {}
    for run in groups[key]:
        cell = tuple(run.settings[name] for name in ("dataset", "estimator", "seed", SIZE))
        chosen.setdefault(cell, run)
    points = pandas.DataFrame([_point(run, figure.quantity) for run in chosen.values()])
    notes = merged((run.settings["estimator"], _notes(run.manifest)) for run in chosen.values()) + _devices(points)
    left_out = sum(map(len, groups.values())) - len(chosen)
    if left_out:
        notes.append(f"No settings are mixed: {counted(left_out, 'other run')} left out.")
    return SubsetRuns(points, key[0], key[1], tuple(run.rows for run in chosen.values()), tuple(notes))


def _point(run: Run, quantity: str) -> dict[str, Any]:
    rows = train_records.read_finished(run.rows, run.settings["epochs"], run.manifest.get("run_id"))
    recorded = rows[quantity].dropna()
    kept = (
        "estimator",
        "structure",
        "inputs",
        "outputs",
        "certified",
        "seed",
        "num_data",
        "model",
        "num_params",
        "device",
    )
    _, transformation = split_name(str(run.settings["dataset"]))
    return {name: rows[name].iloc[-1] for name in kept} | {
        "transformation": transformation,
        "epochs": int(rows["epoch"].max()),
        quantity: float(recorded.iloc[-1]) if len(recorded) else None,
    }


def _devices(points: pandas.DataFrame) -> list[str]:
    """Which points come from another device than most."""
    elsewhere = points[points["device"] != points["device"].mode().iloc[0]].sort_values("num_data")
    return [
        f"Trained on {device}: {', '.join(dict.fromkeys(f'{row.estimator} of {row.num_data} images' for row in group.itertuples()))}."
        for device, group in elsewhere.groupby("device")
    ]


def _notes(manifest: Mapping[str, Any]) -> list[str]:
    """The manifest's sentences; the size and the name of the data are said by axis, panels and caption."""
    sentences = []
    for note in manifest.get("notes", []):
        start, changes = taken_apart(note)
        kept = [change for change in changes if not change.startswith(("num data ", "dataset "))]
        if kept or not changes:
            sentences.append(f"{start}: {', '.join(kept)}." if kept else note)
    return sentences
