"""Speed and memory of ntkml beside other packages on the same work: ``python -m benchmarks --help``."""
