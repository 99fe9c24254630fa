"""How cost grows: exponents fitted to measured rows.

In the inputs of a block M, its columns per input C, the views S, and the parameters P of one network with more channels.
"""

from __future__ import annotations

import math

import pandas

from benchmarks.networks import family
from ntkml.specs import parse_estimator

_SIZES = ("M", "C", "S", "P")


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Least-squares slope of log seconds against log size."""
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def exponents(rows: pandas.DataFrame) -> pandas.DataFrame:
    """By system, network and structure, where three sizes or more differ in one of M, C, S, P and in nothing else."""
    rows = rows.assign(
        structure=[parse_estimator(name).structure for name in rows.estimator],
        C=[_columns(name) for name in rows.estimator],
        M=rows.num_inputs,
        S=rows.views,
        P=rows.num_params,
        network=[family(name) for name in rows.network],
    )
    fits = []
    for size in _SIZES:
        others = ["system", "network", "structure", *(other for other in _SIZES if other != size)]
        for key, group in rows.groupby(others):
            group = group[group[size] > 0]  # without views the work is another one: no gradient in eta
            if group[size].nunique() >= 3:
                fit = exponent(list(group[size]), list(group.cpu_seconds))
                sizes = " ".join(str(n) for n in sorted(group[size].unique()))
                fits.append(
                    {"system": key[0], "network": key[1], "structure": key[2], "in": size, "at": sizes, "exponent": fit}
                )
    return pandas.DataFrame(fits)


def _columns(estimator: str) -> int:
    """Columns of the factor in a block of ten classes: 9 for all of a softmax, 1 for one output, k for a group."""
    outputs = parse_estimator(estimator).outputs
    return 9 if outputs == "C" else int(outputs) if outputs.isdigit() else 1
