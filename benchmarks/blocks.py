"""Peak memory of large blocks: one estimate with its gradient in the prior and in eta, each in a process of its own.

``python -m benchmarks.blocks`` writes ``blocks.csv``. What grows how is the point: a chunk of the inputs and its graph are
bounded, and smaller where there are more views; kfac keeps nothing beyond that grows; ntk keeps the rows of one group of
layers or their gradient (P x M, at most 8 GiB) and some M x M matrices, whatever the number of views.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import pandas

from benchmarks.cases import Case
from benchmarks.memory import measure

#: Inputs and views: M grows at S = 4, S at M = 50.
_SIZES = ((50, 4), (50, 20), (125, 4), (500, 4))


@click.command()
@click.option("--network", default="wrn16-4", show_default=True)
@click.option("--structures", default="kfac,ntk", show_default=True)
@click.option("--out", default="results/bench", show_default=True, type=click.Path(path_type=Path))
def main(network: str, structures: str, out: Path) -> None:
    """Peak MiB and CPU seconds of blocks of 50 to 500 inputs with 4 to 20 views, above network and data."""
    rows = []
    for structure in structures.split(","):
        for num_inputs, views in _SIZES:
            case = Case(network, num_inputs, f"{structure}-N-1", views)
            measured = measure("ntkml", case)
            rows.append({"case": case.name, **asdict(case), **measured})
            print(f"{case.name:30}{measured['peak_mib']:8.0f} MiB{measured['cpu_seconds']:8.0f} s", flush=True)
            out.mkdir(parents=True, exist_ok=True)
            pandas.DataFrame(rows).to_csv(out / "blocks.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
