"""Words beside points, placed so that they cover neither each other nor what is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

SIZE = 5.4  # points
_DISTANCES = (3.0, 6.0, 10.0, 15.0, 21.0, 28.0, 36.0, 45.0, 55.0, 66.0, 78.0)  # points, from the mark to the words
#: Degrees; below the left of a frontier is free.
_ANGLES = (225, 205, 245, 190, 262, 180, 275, 300, 45, 20, 70, 330, 135)
_SHARES = tuple(step / 12 for step in range(13))
_LEADER_FROM = 6.0  # points of distance from which on a thin line joins the words with their mark


def label_points(part: Axes, points: Mapping[str, tuple[float, float]], obstacles: Sequence[Bbox]) -> list[str]:
    """Write every name beside its point and return the names for which no place was free.

    The limits of ``part`` have to be final. ``obstacles`` are boxes in display coordinates that stay free.
    """
    placed: list[Bbox] = []
    left_out = []
    frame = part.get_window_extent()
    for name, point in points.items():
        anchor = tuple(part.transData.transform(point))
        text = part.text(*point, name, fontsize=SIZE, gid="label", va="bottom", ha="left")
        extent = text.get_window_extent()
        found = _place(anchor, (extent.width, extent.height), frame, obstacles, placed, part.figure.dpi / 72)
        if found is None:
            text.remove()
            left_out.append(name)
            continue
        box, distance = found
        text.set_position(part.transData.inverted().transform((box.x0, box.y0)))
        placed.append(box)
        if distance >= _LEADER_FROM:
            _lead(part, anchor, box)
    return left_out


def boxes_around(part: Axes, points: Sequence[tuple[float, float]], sizes: Sequence[float]) -> list[Bbox]:
    """Boxes of marks of ``sizes`` points, in display coordinates."""
    boxes = []
    for point, size in zip(points, sizes, strict=True):
        (x, y), half = part.transData.transform(point), (size / 2 + 0.5) * part.figure.dpi / 72
        boxes.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    return boxes


def _place(
    anchor: tuple[float, ...],
    size: tuple[float, float],
    frame: Bbox,
    obstacles: Sequence[Bbox],
    words: Sequence[Bbox],
    pixels: float,
) -> tuple[Bbox, float] | None:
    """The nearest free box of ``size`` around ``anchor`` and its distance in points; ``pixels`` to a point."""
    width, height = size
    taken = [*obstacles, *words]
    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x, y = anchor[0] + distance * pixels * across, anchor[1] + distance * pixels * up
            # The corner or side that faces the mark is the one that is put at the distance.
            x0 = x - width if across < -0.1 else x if across > 0.1 else x - width / 2
            y0 = y - height if up < -0.1 else y if up > 0.1 else y - height / 2
            box = Bbox.from_bounds(x0, y0, width, height)
            inside = frame.x0 + 2 < box.x0 and box.x1 < frame.x1 - 2 and frame.y0 + 2 < box.y0 and box.y1 < frame.y1 - 2
            if inside and not any(_touch(box, other) for other in taken) and not _crosses(anchor, box, words):
                return box, distance
    return None


def _crosses(anchor: tuple[float, ...], box: Bbox, words: Sequence[Bbox]) -> bool:
    """Whether the line from the mark to ``box`` would run through other words."""
    end = _nearest(anchor, box)
    steps = [(anchor[0] + share * (end[0] - anchor[0]), anchor[1] + share * (end[1] - anchor[1])) for share in _SHARES]
    return any(other.x0 <= x <= other.x1 and other.y0 <= y <= other.y1 for x, y in steps for other in words)


def _nearest(anchor: tuple[float, ...], box: Bbox) -> tuple[float, float]:
    """The point of the box that is nearest to the mark."""
    return min(max(anchor[0], box.x0), box.x1), min(max(anchor[1], box.y0), box.y1)


def _touch(one: Bbox, other: Bbox) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def _lead(part: Axes, anchor: tuple[float, ...], box: Bbox) -> None:
    """A thin line from the mark to the nearest point of the words."""
    start, end = part.transData.inverted().transform([anchor, _nearest(anchor, box)])
    part.plot(*zip(start, end, strict=True), color="0.6", linewidth=0.35, zorder=1.5, gid="leader")
