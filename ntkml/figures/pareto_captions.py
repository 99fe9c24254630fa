"""Sentences under a Pareto figure: what was timed and on what, what is no bound, hidden or missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas

from ntkml.figures.captions import data_and_network, grouped, listed, not_of_the_paper, seeds_of
from ntkml.figures.pareto_marks import each
from ntkml.protocols.bound_figures import names_on
from ntkml.protocols.training_figures import ParetoFigure


def sentences(
    rows: pandas.DataFrame,
    hidden: Mapping[str, pandas.DataFrame],
    manifest: Mapping[str, Any],
    figure: ParetoFigure,
) -> list[str]:
    """All but the title and the notes.

    ``rows`` has a column ``drawn``: what lies on the frontier that was computed. What the ``figure`` or the run asks for and
    the rows lack is missing.
    """
    said = [_provenance(rows, figure.dataset), *_timing(rows, manifest), _meaning(rows)]
    said.append(f"Frontier, from fast to slow: {', '.join(rows[rows['drawn']].sort_values('seconds')['estimator'])}.")
    if len(disagreeing := rows[rows["drawn"] != rows["on_frontier"].astype(bool)]):
        said.append(f"The rows' own flags of the frontier disagree with it at {listed(disagreeing['estimator'])}.")
    if len(unproven := rows[~rows["certified"].astype(bool)]):
        said.append(f"Open marks, not a proven bound: {listed(unproven['estimator'])}.")
    if len(grouped_blocks := rows[~rows["grouping"].fillna("").isin(["", "iid"])]):
        said.append(f"Grouped blocks, marked like random ones: {listed(grouped_blocks['estimator'])}.")
    for column, beyond in hidden.items():
        if len(beyond):
            which = "exact values" if column.startswith("exact") else "estimates"
            points = ", ".join(
                f"{row.estimator} ({-getattr(row, column):.3g} at {row.seconds:.2g} s)" for row in each(beyond)
            )
            said.append(f"Outside the range shown ({which}): {points}.")
    exact = rows["exact_log_marginal_likelihood"]
    if exact.notna().any() and (rows["num_seeds"] > 1).any():
        said.append("Exact values: at the end of the first seed's run.")
    if exact.notna().any() and exact.isna().any():
        said.append(f"Without an exact value: {listed(rows.loc[exact.isna(), 'estimator'])}.")
    expected = names_on((*figure.estimators, *manifest.get("estimators", ())), int(rows["num_data"].iloc[0]))
    if absent := [name for name in expected if name not in set(rows["estimator"])]:
        said.append(f"Missing: {listed(absent)}.")
    return said


def _provenance(rows: pandas.DataFrame, expected: str) -> str:
    first = rows.iloc[0]
    seeds = {str(row.estimator): [int(seed) for seed in str(row.seeds).split()] for row in each(rows)}
    return (
        f"{first['dataset']}{not_of_the_paper(first['dataset'], expected)}, {data_and_network(first)}, S\u00a0=\u00a0{_range(rows['samples'])}, "
        f"{_range(rows['epochs'])} epochs, {seeds_of(seeds)}."
    )


def _timing(rows: pandas.DataFrame, manifest: Mapping[str, Any]) -> list[str]:
    environment = manifest.get("environment", {})
    torch = environment.get("versions", {}).get("torch")
    devices = ", ".join(dict.fromkeys(rows["device"]))
    computed_by = environment.get({"cpu": "cpu", "cuda": "gpu"}.get(devices, ""))
    threads = _range(rows["threads"])
    words = [
        f"{devices} ({computed_by})" if computed_by else devices,
        f"{threads} thread{'' if threads == '1' else 's'}",
        ", ".join(dict.fromkeys(rows["dtype"])),
        f"torch {torch}" if torch else "torch version unknown",
    ]
    return [f"Seconds: median of {_range(rows['repeats'])} repeats on {', '.join(words)}; horizontal bars: quartiles."]


def _meaning(rows: pandas.DataFrame) -> str:
    bars = "; vertical bars: one standard error over seeds" if rows["standard_error"].notna().any() else ""
    return f"Estimates: mean of the last five that each training run made itself{bars}."


def _range(values: pandas.Series[Any]) -> str:
    """One number, or the lowest and the highest."""
    low, high = int(values.min()), int(values.max())
    return grouped(low) if low == high else f"{grouped(low)} to {grouped(high)}"
