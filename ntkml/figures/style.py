"""The look of every figure: ICML column widths, Times-like type, lines that can be told apart in grey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib

HALF_COLUMN, FULL_WIDTH = 3.25, 6.75  # inches, ICML
CAPTION_SIZE = 5.2  # points
MARGIN = 0.06  # inches, on both sides of a caption

SETTINGS = {
    # STIX comes with matplotlib, so that a figure looks the same on every machine.
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.0,
    "axes.titlepad": 3.0,
    "axes.labelpad": 1.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "axes.linewidth": 0.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": True,
    "axes.unicode_minus": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.4,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "xtick.minor.visible": False,
    "lines.linewidth": 0.9,
    "lines.markersize": 2.3,
    "lines.markeredgewidth": 0.5,
    "savefig.dpi": 400,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "axes.prop_cycle": matplotlib.rcParamsDefault["axes.prop_cycle"],
}


@contextmanager
def context() -> Iterator[None]:
    """matplotlib's defaults plus ours for the body; what the user has set comes back after it."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **SETTINGS}):
        yield


@dataclass(frozen=True)
class LineLook:
    """What tells one curve from another; each of the three alone suffices for up to eight curves."""

    color: str
    linestyle: str | tuple[int, tuple[float, ...]]
    marker: str


FULL = LineLook("black", "solid", "")  # the exact value, in every figure

# From coarse to fine partitions: dark to light, long dashes to dots.
_DASHES: tuple[tuple[float, ...], ...] = (
    (6.0, 1.2),
    (6.0, 1.2, 1.0, 1.2),
    (4.0, 1.2),
    (4.0, 1.2, 1.0, 1.2, 1.0, 1.2),
    (2.2, 1.0),
    (2.2, 1.0, 0.8, 1.0),
    (0.9, 0.9),
)
_MARKERS = ("s", "^", "D", "v", "o", "P", "X")
_LIGHTEST = 0.80  # of viridis; beyond it the yellow is lost on white paper


def sequence(count: int) -> list[LineLook]:
    """``count`` looks, ordered from dark (tightest bound) to light (loosest)."""
    colormap = matplotlib.colormaps["viridis"]
    looks = []
    for index in range(count):
        share = index / max(count - 1, 1)
        color = matplotlib.colors.to_hex(colormap(0.1 + (_LIGHTEST - 0.1) * share))
        looks.append(LineLook(color, (0, _DASHES[index % len(_DASHES)]), _MARKERS[index % len(_MARKERS)]))
    return looks
