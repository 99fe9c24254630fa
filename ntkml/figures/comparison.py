"""Quality against cost of systems that learn hyperparameters: one row of panels for every comparison.

Across, data passes (left) and seconds (right); up, the test log likelihood. A point is the mean over seeds, a thin bar
their range. The caption names the best of every row; what each system learned stands in the CSV and the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ntkml.figures import captions, style
from ntkml.figures.layout import Sheet
from ntkml.records.notes import first_few
from ntkml.specs import is_certified, parse_estimator
from ntkml.system_specs import ALIASES, family_of

PANEL_HEIGHT = 2.0  # inches
#: The least range of an axis of the quality, in nats: a smaller one magnifies chance, and its numbers need more room than there is.
LEAST_RANGE = 0.1
COSTS = {"data_passes": "data passes", "seconds": "seconds of training"}
QUALITY = "test_log_likelihood"
# Nine marks beside ten colours, so that ninety systems look different.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def draw(rows: pandas.DataFrame, notes: Iterable[str] = ()) -> Figure:
    """The comparison in ``rows`` of one or more runs; ``notes`` are sentences for the caption.

    Raises:
        ValueError: rows of several protocols, which are no seeds of one, or a system that has several rows for one seed.
    """
    groups = [group for _, group in rows.groupby(["hparam", "dataset", "num_data"], sort=False)]
    for group in groups:
        _refuse(group)
    names = list(dict.fromkeys(rows["system"]))
    looks = {
        name: _look(index, name, str(rows.loc[rows["system"] == name, "family"].iloc[0]))
        for index, name in enumerate(names)
    }
    handles = [Line2D([], [], linestyle="none", label=_named(name), **looks[name]) for name in names]
    sentences = [_provenance(group) for group in groups] + [_best(group) for group in groups]
    sentences += [
        "Filled marks: proven bounds of the marginal likelihood; open marks: unproven ones and other systems.",
        "A data pass is a gradient, or a product with the Jacobian, of N inputs.",
        *_about_systems(names),
        *notes,
    ]
    with style.context():
        sheet = Sheet(
            width=style.FULL_WIDTH, shape=(len(groups), 2), panel_height=PANEL_HEIGHT, titles=True, legend=handles,
            legend_title="", caption=captions.wrap(sentences, style.FULL_WIDTH),
        )  # fmt: skip
        for row, group in enumerate(groups):
            first = None
            for column, (cost, words) in enumerate(COSTS.items()):
                part = sheet.panel(row, column)
                first = first or part
                _fill(part, group, cost, looks)
                part.set(xscale="log", xlabel=words)
                part.xaxis.set_minor_formatter(NullFormatter())
                part.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                part.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                part.set_title(f"{group['hparam'].iloc[0]} on {group['dataset'].iloc[0]}")
            assert first is not None
            sheet.label_y(first, "test log likelihood [nats]")
    return sheet.figure


def _refuse(group: pandas.DataFrame) -> None:
    first = group.iloc[0]
    where = f"the comparison rows of the {first['hparam']} on {first['dataset']}"
    for column in ("model", "num_params", "epochs"):
        if len(values := list(dict.fromkeys(group[column]))) > 1:
            raise ValueError(
                f"{where} mix several values of {column} ({first_few(values)}): draw the files one by one (--csv)"
            )
    twice = group[group.duplicated(["system", "seed"])]  # of runs that differ in what the rows do not hold
    if len(twice):
        again = f"{twice['system'].iloc[0]} with seed {twice['seed'].iloc[0]}"
        raise ValueError(f"{where} have {again} more than once: draw the files one by one (--csv)")


def _named(name: str) -> str:
    """A system with the word that the field has for it, where that is another one."""
    words = [alias.upper() for alias, meant in ALIASES.items() if meant == name]
    return f"{name} ({words[0]})" if words else name


def _look(index: int, name: str, family: str) -> dict[str, Any]:
    """Systems are compared on classes, where a bound of one output is not proven."""
    color = f"C{index % 10}"
    filled = family == "bound" and is_certified(parse_estimator(name))
    return {
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4.5,
        "color": color,
        "markerfacecolor": color if filled else "white",
        "markeredgewidth": 0.9,
    }


def _fill(part: Axes, group: pandas.DataFrame, cost: str, looks: Mapping[str, dict[str, Any]]) -> None:
    for name, own in group.groupby("system", sort=False):
        x, values = own[cost].mean(), own[QUALITY]
        if len(own) > 1:
            part.plot([x, x], [values.min(), values.max()], color=looks[str(name)]["color"], linewidth=0.5)
        part.plot([x], [values.mean()], linestyle="none", gid=str(name), **looks[str(name)])
    low, high = part.get_ylim()
    if (missing := LEAST_RANGE - (high - low)) > 0:
        part.set_ylim(low - missing / 2, high + missing / 2)


def _about_systems(names: Iterable[str]) -> list[str]:
    """What the costs and the data of the drawn systems are that are not those of one fit on all data."""
    families = [family_of(name) for name in names]
    sentences = []
    if any(family.data == "train + validation" and not family.searches for family in families):
        sentences.append("hoag holds out a fifth of the training data and keeps the weights of the rest.")
    if any(family.searches for family in families):
        sentences.append("The cost of a search is that of all its fits, with a final one on all data.")
    return sentences


def _provenance(group: pandas.DataFrame) -> str:
    first = group.iloc[0]
    seeds = sorted(set(group["seed"]))
    words = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"{first['hparam']}: {first['dataset']}, {captions.data_and_network(first)}, {first['epochs']} epochs per fit, {words}."


def _best(group: pandas.DataFrame) -> str:
    """The best system of a row of panels, whichever it is."""
    means = group.groupby("system", sort=False)[QUALITY].mean()
    where = f"{group['dataset'].iloc[0]} ({group['hparam'].iloc[0]})"
    return f"Best on {where}: {means.idxmax()} at {means.max():.3f} nats."
