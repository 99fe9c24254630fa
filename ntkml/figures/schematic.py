"""Figure 2: how the bounds follow from each other; boxes and arrows, no data.

Top: the exact value in its two forms. Left: bounds that cut the parameters (Theorem 1). Right: bounds that cut the index
pairs of inputs and outputs (Theorem 2). Bottom: the right-hand side translated back to parameters (Theorem 3), and both
cuts at once (Corollary 3.1). Which boxes are proven is asked of :func:`ntkml.specs.is_certified`, not typed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from ntkml.figures import captions, style
from ntkml.specs import is_certified, parse_estimator

# All lengths in inches: the axes of the figure count in them.
WIDTH, HEIGHT = style.FULL_WIDTH, 3.42
COLUMNS, ROWS = (0.06, 1.76, 3.49, 5.19), (2.72, 1.96, 1.20, 0.44)
BOX_WIDTH, BOX_HEIGHT, MATRIX = 1.50, 0.52, 0.36
PARAMETERS, PAIRS, BOTH, UNCUT = "#3b528b", "#1f7f79", "#7a4a86", "0.2"

CAPTION = (
    "Arrows lead from a tighter bound to a looser one: ≥ compares log q, of which the boxes show the determinants. "
    "Solid boxes are proven lower bounds under softmax, dashed ones are not: KFAC approximates its blocks, and single outputs "
    "ignore that softmax couples them, which single nodes of a class tree do not. Bounds on blocks of inputs (right and bottom) are estimated without bias from one block, 100 inputs here."
)


@dataclass(frozen=True)
class Box:
    """One estimator of the family, by column and row, with the matrix of which it takes the log-determinant."""

    estimator: str
    column: int
    row: int
    title: str
    formula: str
    color: str
    blocks: tuple[float, ...] = (1.0,)  # sides of the blocks along the diagonal, as shares of the whole
    copies: int = 1  # matrices that are summed over: one for each block of inputs

    @property
    def x(self) -> float:
        return COLUMNS[self.column]

    @property
    def y(self) -> float:
        return ROWS[self.row]


LAYERS = (0.42, 0.33, 0.25)
BOXES = (
    Box("ggn-N-C", 1, 0, "full GGN", r"$|\mathbf{H}\,\mathbf{P}_0^{-1}+\mathbf{I}|$", UNCUT),
    Box("ntk-N-C", 2, 0, "full NTK", r"$|\mathbf{K}+\mathbf{I}|$", UNCUT),
    Box("blockdiag-N-C", 1, 1, "layers", r"$\prod_p|\mathbf{H}_p\mathbf{P}_{0,p}^{-1}+\mathbf{I}|$", PARAMETERS, LAYERS),
    Box("diag-N-C", 0, 1, "single parameters", r"$\prod_i(H_{ii}/P_{0,ii}+1)$", PARAMETERS, (1 / 12,) * 12),
    Box("kfac-N-C", 0, 2, "Kronecker factors", r"$\mathbf{H}_p\approx\mathbf{A}_p\otimes\mathbf{G}_p$", PARAMETERS, LAYERS),
    Box("ntk-100-C", 2, 1, "blocks of inputs", r"$\prod_m|\mathbf{K}_{\mathcal{B}_m}+\mathbf{I}|$", PAIRS, (0.25,) * 4),
    Box("ntk-100-tree", 3, 1, "nodes of a class tree", r"$\mathbf{L}\mathbf{L}^{\!\top}=\Lambda$, rows of $\mathbf{L}^{\!\top}\mathbf{J}$", PAIRS, (1 / 12,) * 12),
    Box("ntk-100-1", 3, 2, "single outputs", r"$\Lambda_{cc}=p_c(1-p_c)$", PAIRS, (1 / 12,) * 12),
    Box("ggn-100-C", 2, 3, "inputs, as a GGN", r"$\prod_m|\mathbf{H}_{\mathcal{B}_m}\mathbf{P}_0^{-1}+\mathbf{I}|$", BOTH, (1.0,), 3),
    Box("blockdiag-100-C", 1, 3, "inputs and layers", r"$\prod_{m,p}|\mathbf{H}_{\mathcal{B}_m,p}\mathbf{P}_{0,p}^{-1}+\mathbf{I}|$", BOTH, LAYERS, 3),
    Box("kfac-100-C", 0, 3, "Kronecker factors", r"$\mathbf{H}_{\mathcal{B}_m,p}\approx\mathbf{A}\otimes\mathbf{G}$", BOTH, LAYERS, 3),
)  # fmt: skip

# From, to, the words beside the arrow; "=" and "≈" are drawn without a head.
ARROWS = (
    ("ggn-N-C", "ntk-N-C", "="),
    ("ggn-N-C", "blockdiag-N-C", "≥  Theorem 1"),
    ("blockdiag-N-C", "diag-N-C", "≥"),
    ("blockdiag-N-C", "kfac-N-C", "≈"),
    ("ntk-N-C", "ntk-100-C", "≥  Theorem 2"),
    ("ntk-100-C", "ntk-100-tree", "≥"),
    ("ntk-100-C", "ntk-100-1", "?"),
    ("ntk-100-C", "ggn-100-C", "=  Theorem 3"),
    ("ggn-100-C", "blockdiag-100-C", "≥"),
    ("blockdiag-N-C", "blockdiag-100-C", "≥  Corollary 3.1"),
    ("blockdiag-100-C", "kfac-100-C", "≈"),
)
HEADINGS = (
    (0, 0, "Parametric bounds", "cut the parameters", PARAMETERS),
    (3, 0, "Kernel bounds", "cut the index pairs", PAIRS),
    (3, 3, "Back to parameters", "on blocks of inputs", BOTH),
)


def draw() -> Figure:
    """The schematic of the family of bounds."""
    lines = captions.wrap([CAPTION], WIDTH)
    with style.context():
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0, 0, 1, 1), label="schematic")
        axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.axis("off")
        boxes = {box.estimator: box for box in BOXES}
        for start, end, words in ARROWS:
            _draw_arrow(axes, boxes[start], boxes[end], words)
        for box in BOXES:
            _draw_box(axes, box)
        for column, row, title, words, color in HEADINGS:
            x, y = COLUMNS[column] + BOX_WIDTH / 2, ROWS[row] + BOX_HEIGHT / 2
            axes.text(x, y + 0.02, title, ha="center", va="bottom", color=color, fontsize=8.5, fontweight="bold")
            axes.text(x, y - 0.02, words, ha="center", va="top", color=color, fontsize=7.5)
        middle = (COLUMNS[1] + COLUMNS[2] + BOX_WIDTH) / 2
        axes.text(
            middle, HEIGHT - 0.03, "linearised Laplace, exact (Equations 5 and 6)", ha="center", va="top", fontsize=7.5
        )
        axes.text(
            style.MARGIN, 0.05, "\n".join(lines), fontsize=style.CAPTION_SIZE, color="0.25", va="bottom", gid="caption"
        )
    return figure


def _draw_box(axes: Axes, box: Box) -> None:
    proven = is_certified(parse_estimator(box.estimator))
    patch = FancyBboxPatch(
        (box.x, box.y), BOX_WIDTH, BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.06", facecolor="white",
        edgecolor=box.color, linewidth=0.9, linestyle="solid" if proven else (0, (3, 2)), gid=box.estimator,
    )  # fmt: skip
    axes.add_patch(patch)
    _draw_matrices(axes, box)
    left = box.x + 0.53
    axes.text(left, box.y + 0.455, box.title, va="top", fontsize=7)
    axes.text(left, box.y + 0.255, box.formula, va="center", fontsize=6.5)
    axes.text(left, box.y + 0.05, box.estimator, va="bottom", fontsize=5.8, family="DejaVu Sans Mono", color=box.color)


def _draw_matrices(axes: Axes, box: Box) -> None:
    """A small square matrix with its blocks along the diagonal, or a pile of them; ``MATRIX`` is the size of the whole."""
    step = 0.035
    side = MATRIX - step * (box.copies - 1)
    # Kronecker products are hatched: they stand for their blocks and are not them.
    is_product = parse_estimator(box.estimator).structure == "kfac"
    filling = {"hatch": "////////", "facecolor": "white"} if is_product else {"facecolor": box.color}
    frame = {"linewidth": 0.4, "edgecolor": "white" if box.copies > 1 and not is_product else box.color}
    for copy in reversed(range(box.copies)):
        x, y = box.x + 0.09 + step * copy, box.y + (BOX_HEIGHT - MATRIX) / 2 + step * copy
        axes.add_patch(Rectangle((x, y), side, side, facecolor="white", edgecolor=box.color, linewidth=0.4))
        corner = 0.0
        for share in box.blocks:
            block = share * side
            axes.add_patch(Rectangle((x + corner, y + side - corner - block), block, block, **frame, **filling))
            corner += block


def _draw_arrow(axes: Axes, start: Box, end: Box, words: str) -> None:
    """An arrow between neighbours, straight along a row or a column, with an elbow otherwise."""
    line = {
        "arrowstyle": "-" if words[0] in "=≈?" else "-|>,head_length=0.25,head_width=0.12", "linewidth": 0.8,
        "linestyle": (0, (2, 1.5)) if words in "≈?" else "solid", "color": "0.2", "shrinkA": 1, "shrinkB": 1,
    }  # fmt: skip
    middle_x, middle_y = BOX_WIDTH / 2, BOX_HEIGHT / 2
    side = 1 if end.x > start.x else 0
    if start.column == end.column:
        tail, head = (start.x + middle_x, start.y), (end.x + middle_x, end.y + BOX_HEIGHT)
        # Beside the head: further up a long arrow, others branch off.
        place, alignment = (tail[0] + 0.06, head[1] + 0.12), {"ha": "left", "va": "center"}
    else:
        head = (end.x + (1 - side) * BOX_WIDTH, end.y + middle_y)
        tail = (start.x + side * BOX_WIDTH, start.y + middle_y)
        place, alignment = ((tail[0] + head[0]) / 2, head[1] + 0.03), {"ha": "center", "va": "bottom"}
        if start.row != end.row:
            tail = (start.x + (0.25 + 0.5 * side) * BOX_WIDTH, start.y)
            line["connectionstyle"] = "angle,angleA=-90,angleB=180,rad=4"
    axes.annotate("", xy=head, xytext=tail, arrowprops=line, annotation_clip=False)
    axes.text(*place, words, fontsize=7, **alignment)
