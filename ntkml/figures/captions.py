"""What a picture must say about itself: data, model, seeds, what is not a bound and what differs from the protocol."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ntkml.figures import style
from ntkml.figures.curves import Curve
from ntkml.machine.messages import counted
from ntkml.specs import EXACT


def manifest_notes(manifests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences of the manifests that a caption must show, each once; the number of augmentation samples comes first."""
    sentences = []
    for manifest in manifests:
        settings = manifest.get("settings", {})
        if settings.get("hparam") in ("rotation", "invariance") and "samples" in settings:
            # In one picture with a grid of priors, which has none.
            where = "Rotation grid: " if manifest.get("command") == "bound-grid" else ""
            sentences.append(f"{where}S\u00a0=\u00a0{settings['samples']} augmentation samples.")
        elif manifest.get("command") == "train" and "samples" in settings:
            sentences.append(f"No augmentation (S\u00a0=\u00a0{settings['samples']}).")
        sentences += manifest.get("notes", [])
    return list(dict.fromkeys(sentences))


def not_of_the_paper(dataset: str, expected: str) -> str:
    """What stands behind the name of a ``dataset`` that is not the paper's: ``expected``, or "" where the paper has no such figure."""
    return f" (not the paper's {expected})" if expected and dataset != expected else ""


def provenance(rows: pandas.DataFrame, expected: Mapping[str, str]) -> str:
    """Data, model and seeds of the rows, one clause for each setting among them.

    ``expected``: the data of the paper's figure by hyperparameter, where there is one.
    """
    clauses: dict[str, list[str]] = {}
    for hparam, group in rows[rows["block"].isna()].groupby("hparam", sort=False):
        first = group.iloc[0]
        seeds = sorted(set(group["seed"]))
        seed_words = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean over seeds {', '.join(map(str, seeds))}"
        size = f"{data_and_network(first)}, {seed_words}"
        elsewhere = not_of_the_paper(first["dataset"], expected.get(str(hparam), ""))
        clauses.setdefault(size, []).append(f"{first['dataset']} ({hparam}){elsewhere}")
    return "; ".join(f"{' and '.join(datasets)}, {size}" for size, datasets in clauses.items()) + "."


def data_and_network(row: Mapping[str, Any] | pandas.Series[Any]) -> str:
    """How many data a run has, and which network: ``N = 1000, mininet (P = 14 538)``."""
    return f"N\u00a0=\u00a0{grouped(row['num_data'])}, {network(row)}"


def network(row: Mapping[str, Any] | pandas.Series[Any]) -> str:
    """The network of a run with the number of its weights."""
    return f"{row['model']} (P\u00a0=\u00a0{grouped(row['num_params'])})"


def findings(curves: Mapping[str, Mapping[str, Curve]], hidden: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Sentences on the curves themselves, by hyperparameter: which are not bounds, exceed the exact value, or are hidden."""
    sentences = []
    every = [curve for panel in curves.values() for curve in panel.values()]
    if any((curve.error > 0).any() for curve in every):
        sentences.append("Bands: one standard error over blocks.")
    sentences += unproven(every)
    for hparam, panel in curves.items():
        if above := [curve for curve in panel.values() if curve.exceeding]:
            worst = max(above, key=lambda curve: curve.exceeding / curve.compared)
            share = f"at up to {worst.exceeding} of {worst.compared} points"
            sentences.append(
                f"Above the exact value ({hparam}): {listed(curve.estimator for curve in above)}, {share}."
            )
    for hparam, panel_hidden in hidden.items():
        if panel_hidden:
            low, high = min(curve.y.min() for curve in panel_hidden), max(curve.y.max() for curve in panel_hidden)
            names = listed(curve.estimator for curve in panel_hidden)
            sentences.append(f"Outside the range shown ({hparam}): {names}, from {low:.3g} to {high:.3g}.")
    return sentences


def unproven(curves: Iterable[Curve]) -> list[str]:
    """A sentence on the curves that are no proven bounds, where there are some."""
    names = list(dict.fromkeys(curve.estimator for curve in curves if not curve.certified))
    return [f"Open markers, not a proven bound: {listed(names)}."] if names else []


def doubt(curves: Iterable[Curve]) -> str:
    """What the title of a panel says where none of its bounds is proven; the exact value is no bound."""
    proven = [curve.certified for curve in curves if curve.estimator != EXACT]
    return "" if any(proven) or not proven else ": not a proven bound"


def missing(wanted: Sequence[str], drawn: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Sentences on what the figure should show and the rows do not hold."""
    sentences = []
    for hparam, panel in drawn.items():
        absent = [name for name in wanted if name not in panel]
        if len(absent) == len(wanted):
            sentences.append(f"There are no {hparam} rows.")
        elif absent:
            sentences.append(f"Missing in the {hparam} rows: {listed(absent)}.")
    return sentences


def seeds_of(by_estimator: Mapping[str, Sequence[int]]) -> str:
    """How many seeds and which, and the estimators that have others than most: "3 seeds (0, 1, 2), 1 seed (0) for ..."."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, seeds in by_estimator.items():
        groups.setdefault(tuple(sorted(seeds)), []).append(name)
    most = max(groups, key=lambda seeds: (len(groups[seeds]), len(seeds)))
    words = {seeds: f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})" for seeds in groups}
    others = [f"{words[seeds]} for {listed(names)}" for seeds, names in groups.items() if seeds != most]
    return ", ".join([words[most], *others])


def wrap(sentences: Iterable[str], width: float) -> list[str]:
    """Lines of the caption of a figure that is ``width`` inches wide."""
    text, points = " ".join(sentences), (width - 2 * style.MARGIN) * 72
    # 0.41 em is the mean width of our type; where the letters of a line are wider, all lines become shorter.
    letters = int(points / (0.41 * style.CAPTION_SIZE))
    lines = textwrap.wrap(text, letters, break_on_hyphens=False)
    while letters > 20 and any(_points(line) > points for line in lines):
        letters -= 2
        lines = textwrap.wrap(text, letters, break_on_hyphens=False)
    return lines


def _points(line: str) -> float:
    """Width of a caption's line in points."""
    font = FontProperties(family=style.SETTINGS["font.family"], size=style.CAPTION_SIZE)
    return float(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0])


def outputs_named(outputs: str) -> str:
    """What panels and legends call the ``outputs`` of an estimator's name."""
    return {"C": "all outputs", "1": "one output", "tree": "one tree node"}.get(outputs, f"{outputs} outputs")


def grouped(number: int) -> str:
    """14538 as "14 538", with a space that does not break; four digits stay together."""
    return f"{int(number):,}".replace(",", "\u00a0") if number >= 10_000 else str(int(number))


def listed(names: Iterable[str]) -> str:
    """Names of estimators, those that differ in their inputs alone written as one: ``ntk-{10, 20}-C``."""
    families: dict[tuple[str, str], list[str]] = {}
    for name in names:
        structure, inputs, rest = name.split("-", 2)
        families.setdefault((structure, rest), []).append(inputs)
    return ", ".join(
        f"{structure}-{sizes[0] if len(sizes) == 1 else '{' + ', '.join(sizes) + '}'}-{rest}"
        for (structure, rest), sizes in families.items()
    )
