"""Settings of ``ntkml bound-grid`` that take a second: on weights that are given, and on weights trained for an epoch."""

GIVEN = "--hparam rotation --grid-points 2 --num-data 40 --samples 2 --device cpu".split()  # noqa: SIM905
SMALL = ["--epochs", "1", *GIVEN]
