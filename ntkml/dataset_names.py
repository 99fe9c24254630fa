"""Names of data sets: a base, and in front of it or behind it what was done to every image, the variant.

NAME_r90, NAME_r180   turned by an angle uniform in [-90, 90] or [-180, 180] degrees
translated_NAME       shifted along both axes by distances uniform in [-8, 8] pixels
scaled_NAME           magnified by a factor log-uniform in [1/2, 2], the same along both axes
"""

from __future__ import annotations

#: Variant -> what a panel says of it; "" is the data set as it is.
VARIANTS = {
    "": "plain",
    "r90": "rotated by up to 90°",
    "r180": "rotated by up to 180°",
    "translated": "translated",
    "scaled": "scaled",
}
_BEHIND = ("r90", "r180")
_IN_FRONT = ("translated", "scaled")


def split_name(name: str) -> tuple[str, str]:
    """``"mnist_r90" -> ("mnist", "r90")``, ``"scaled_mnist" -> ("mnist", "scaled")``, ``"mnist" -> ("mnist", "")``."""
    base, separator, variant = name.rpartition("_")
    if separator and variant in _BEHIND:
        return base, variant
    variant, separator, base = name.partition("_")
    return (base, variant) if separator and variant in _IN_FRONT else (name, "")


def join_name(base: str, variant: str) -> str:
    """The inverse of :func:`split_name`."""
    if not variant:
        return base
    return f"{base}_{variant}" if variant in _BEHIND else f"{variant}_{base}"
