"""Settings of ``ntkml bound-grid`` that take a second."""

SMALL = "--hparam rotation --grid-points 2 --num-data 40 --samples 2 --epochs 1 --device cpu".split()  # noqa: SIM905
