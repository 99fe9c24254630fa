"""``python -m benchmarks SUITE``: measure, write the CSV and the picture, print the ratios."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from benchmarks.cases import SUITES
from benchmarks.run import error_line


@click.command()
@click.argument("suite", type=click.Choice(list(SUITES)))
@click.option("--only", default="", help="Only cases whose name contains this, for example 'mininet-100-ntk'.")
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(1), help="Rounds; the median is reported.")
@click.option("--data-root", default=None, help="Folder with MNIST in torchvision's layout; random pixels without it.")
@click.option("--memory/--no-memory", default=True, help="Measure the peak of a fresh process for every system.")
@click.option(
    "--out", default="results/bench", show_default=True, help="Folder for the CSV, the picture and the manifest."
)
def main(suite: str, only: str, repeats: int, data_root: str | None, memory: bool, out: str) -> None:
    """Time ntkml, plain training and other packages on the same work, in turn, on one thread.

    \b
    Examples:
      python -m benchmarks quick --data-root DIR
      python -m benchmarks full --only wrn16-4 --no-memory
    """
    import pandas
    import torch

    from benchmarks.growth import exponents
    from benchmarks.picture import draw
    from benchmarks.run import measure
    from benchmarks.table import line, write, write_manifest

    torch.set_num_threads(1)
    cases = [case for case in SUITES[suite] if only in case.name]
    if not cases:
        known = ", ".join(case.name for case in SUITES[suite])
        raise click.BadParameter(f"no case of {suite} contains {only!r}; known: {known}", param_hint="--only")
    if data_root is None and any(case.data == "mnist" for case in cases):
        error_line("no --data-root: random pixels take the place of MNIST")
        cases = [replace(case, data="random") for case in cases]
    name, folder, rows = f"{suite}-{only}" if only else suite, Path(out), []
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / f"{name}.json", suite=suite, only=only, repeats=repeats)
    for row in measure(cases, repeats, data_root, memory):
        print(line(row), flush=True)
        rows.append(row)
        write(rows, folder / f"{name}.csv")
    if suite == "growth":
        fits = exponents(pandas.read_csv(folder / f"{name}.csv"))
        fits.to_csv(folder / f"{name}-exponents.csv", index=False, float_format="%.3g")
        print(fits.to_string(index=False))
    draw(pandas.read_csv(folder / f"{name}.csv"), folder / f"{name}.png")
    print(f"wrote {folder / name}.csv, .png and .json")


if __name__ == "__main__":
    main()
