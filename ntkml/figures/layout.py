"""A grid of panels with a legend above (or one above each row) and a caption below, measured in inches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D

from ntkml.figures import style

# All in inches.
LEFT, RIGHT = 0.46, 0.09  # y labels; room for half of the last x tick label
GAP, NARROW_GAP, LABELLED_GAP = 0.35, 0.20, 0.55  # between columns: with y tick labels, without, with a y label too
BELOW_PANEL, BARE_BELOW = 0.29, 0.06  # x tick labels and x label; a row of panels without them
TITLE, CAPTION_LINE, LEGEND_LINE = 0.15, 0.085, 0.108


class Sheet:
    """An empty figure of ``width`` inches with ``num_rows`` x ``num_columns`` panels, each ``panel_height`` high.

    With ``labelled_columns`` every panel has room for a label of its y-axis, otherwise those of the first column only.
    ``scale_legend`` has entries that explain the scale of the marks, on lines of their own beneath ``legend``.
    ``row_legends`` are the entries of a legend for every row; they lie under the row's heading, above its panels.
    """

    def __init__(
        self,
        width: float,
        shape: tuple[int, int],
        panel_height: float,
        titles: bool,
        legend: Sequence[Line2D],
        legend_title: str,
        caption: Sequence[str],
        shared_x: bool = False,
        shared_y: bool = False,
        labelled_columns: bool = False,
        scale_legend: Sequence[Line2D] = (),
        row_legends: Sequence[Sequence[Line2D]] = (),
    ) -> None:
        self.width, self.num_rows, self.shared_x, self.shared_y = width, shape[0], shared_x, shared_y
        gap = LABELLED_GAP if labelled_columns else NARROW_GAP if shared_y else GAP
        num_rows, num_columns = shape
        legend_columns, legend_lines = _legend_shape(legend, width)
        scale_columns, scale_lines = _legend_shape(scale_legend, width)
        title_lines = 1 if legend_title and legend else 0
        above = (title_lines + legend_lines + scale_lines) * LEGEND_LINE + 0.04
        highest = max((_legend_shape(own, width)[1] for own in row_legends), default=0)
        title = (TITLE if titles else 0.04) + highest * LEGEND_LINE
        below = BELOW_PANEL + CAPTION_LINE * len(caption) + (0.05 if caption else 0.0)
        between = (BARE_BELOW if shared_x else BELOW_PANEL) + title
        height = above + title + num_rows * panel_height + (num_rows - 1) * between + below
        self.figure = Figure(figsize=(width, height))
        panel_width = (width - LEFT - RIGHT - (num_columns - 1) * gap) / num_columns
        self.grid = GridSpec(
            num_rows,
            num_columns,
            figure=self.figure,
            left=LEFT / width,
            right=1 - RIGHT / width,
            top=1 - (above + title) / height,
            bottom=below / height,
            wspace=gap / panel_width,
            hspace=between / panel_height,
        )
        if legend:
            self._add_legend(legend, legend_title, legend_columns, 1 - 0.02 / height)
        if scale_legend:
            top = 0.02 + (title_lines + legend_lines) * LEGEND_LINE
            self._add_legend(scale_legend, "", scale_columns, 1 - top / height)
        if caption:
            self.figure.text(
                style.MARGIN / width, 0.03 / height, "\n".join(caption), fontsize=style.CAPTION_SIZE, color="0.25",
                linespacing=CAPTION_LINE * 72 / style.CAPTION_SIZE / 1.2, va="bottom", parse_math=False, gid="caption",
            )  # fmt: skip

    def panel(self, row: int, column: int) -> Axes:
        return self.figure.add_subplot(self.grid[row, column])

    def broken_panel(self, row: int, column: int) -> list[Axes]:
        """A panel whose y-axis is cut: the upper part and, a quarter as high as the panel, the lower one."""
        parts = self.grid[row, column].subgridspec(2, 1, height_ratios=(3, 1), hspace=0.08)
        upper, lower = self.figure.add_subplot(parts[0]), self.figure.add_subplot(parts[1])
        upper.spines["bottom"].set_visible(False)
        lower.spines["top"].set_visible(False)
        upper.tick_params(bottom=False, labelbottom=False)
        slash = {
            "marker": [(-1, -0.6), (1, 0.6)],
            "markersize": 4,
            "linestyle": "none",
            "color": "black",
            "clip_on": False,
        }
        upper.plot([0, 1], [0, 0], transform=upper.transAxes, markeredgewidth=0.5, **slash)
        lower.plot([0, 1], [1, 1], transform=lower.transAxes, markeredgewidth=0.5, **slash)
        return [upper, lower]

    def label_y(self, part: Axes, words: str) -> None:
        """Name the y-axis of a panel beside it, at the same distance whatever its tick labels."""
        box = part.get_subplotspec().get_topmost_subplotspec().get_position(self.figure)
        left = box.x0 - (LEFT - 0.03) / self.width
        self.figure.text(left, (box.y0 + box.y1) / 2, words, rotation=90, ha="left", va="center")

    def head_row(self, row: int, words: str, handles: Sequence[Line2D]) -> None:
        """The heading of a row and under it the row's legend."""
        box, height = self.grid[row, 0].get_position(self.figure), self.figure.get_figheight()
        columns, lines = _legend_shape(handles, self.width)
        top = box.y1 + (0.02 + lines * LEGEND_LINE) / height
        self.figure.text(box.x0, top + 0.03 / height, words, va="bottom", fontsize=7.0, gid="heading")
        if handles:
            self._add_legend(handles, "", columns, top)

    def _add_legend(self, handles: Sequence[Line2D], title: str, columns: int, top: float) -> None:
        legend = self.figure.legend(
            handles=_row_major(handles, columns), title=title or None, loc="upper center",
            bbox_to_anchor=(0.5, top), ncols=columns, frameon=False, borderpad=0.0, borderaxespad=0.0,
            labelspacing=0.25, columnspacing=1.0, handlelength=2.4, handletextpad=0.4,
        )  # fmt: skip
        legend._legend_box.sep = 2.0  # points between the title and the entries


def _legend_shape(handles: Sequence[Line2D], width: float) -> tuple[int, int]:
    """Columns and lines of the legend: as many columns as the longest label allows, evenly filled."""
    if not handles:
        return 1, 0
    lengths = [len(str(handle.get_label())) for handle in handles]
    for columns in range(len(handles), 1, -1):
        longest = [max(lengths[column::columns]) for column in range(columns)]
        if sum(0.33 + 0.042 * length for length in longest) <= width - 0.1:
            lines = math.ceil(len(handles) / columns)
            return math.ceil(len(handles) / lines), lines
    return 1, len(handles)


def _row_major(handles: Sequence[Line2D], columns: int) -> list[Line2D]:
    """Reorder: matplotlib fills a legend column by column, a reader goes along the lines.

    With h handles in c columns matplotlib makes the first ``h mod c`` columns one longer, as reading along lines needs.
    """
    return [handle for column in range(columns) for handle in handles[column::columns]]
