"""CPU seconds of every system as ratios to plain training, one panel for every piece of work."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas  # noqa: E402
from matplotlib import pyplot  # noqa: E402

#: Colour-blind safe, one for every system in the order of their appearance.
_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#000000", "#999999")


def draw(rows: pandas.DataFrame, path: Path) -> None:
    """Bars of ratios, grouped by the number of inputs; a dashed line at plain training."""
    shown = rows[rows.system != "plain"]
    names = list(dict.fromkeys(shown.system))
    colours = dict(zip(names, _COLOURS * (1 + len(names) // len(_COLOURS)), strict=False))
    panels = list(shown.groupby(["network", "estimator", "views"], sort=False))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.2 * columns, 2.9 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, ((network, estimator, views), panel) in zip(axes.flat, panels, strict=False):
        _panel(axis, panel, names, colours)
        axis.set_title(f"{network}, {estimator}" + (f", {views} views and eta" if views else ""), fontsize=9)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(
        handles,
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.2 / (2.9 * lines)),
        ncol=min(4, len(names)),
        fontsize=8,
        frameon=False,
    )
    height = 2.9 * lines
    figure.text(0.5, 0.05 / height, _caption(rows), ha="center", va="bottom", fontsize=7)
    figure.tight_layout(rect=(0, (0.35 + 0.25 * -(-len(names) // 4)) / height, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _caption(rows: pandas.DataFrame) -> str:
    threads, rounds = sorted(set(rows.threads)), sorted(set(rows.repeats))
    return (
        f"CPU seconds on {' or '.join(map(str, threads))} thread{'s' * (threads != [1])} as ratios to one plain forward and backward pass of the "
        f"same batch in the same round; medians of {' or '.join(map(str, rounds))} rounds. A number on a bar is its ratio."
    )


def _panel(axis: pyplot.Axes, panel: pandas.DataFrame, names: list[str], colours: dict[str, str]) -> None:
    sizes = sorted(panel.num_inputs.unique())
    here = [name for name in names if name in set(panel.system)]
    width = 0.8 / len(here)
    for index, name in enumerate(here):
        own = panel[panel.system == name]
        places = [sizes.index(n) + (index + 0.5) * width - 0.4 for n in own.num_inputs]
        bars = axis.bar(places, own.ratio, width, color=colours[name])
        axis.bar_label(bars, [f"{ratio:.2g}" if ratio >= 0.01 else f"{ratio:.1g}" for ratio in own.ratio], fontsize=6)
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axis.set_yscale("log")
    axis.margins(y=0.15)
    axis.set_xticks(range(len(sizes)), [str(n) for n in sizes])
    axis.set_xlabel("inputs in the block", fontsize=8)
    axis.set_ylabel("CPU time / plain training", fontsize=8)
    axis.tick_params(which="both", labelsize=7)
