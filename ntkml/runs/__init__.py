"""Runs: a protocol in, rows out. Each run lives in one folder and can be stopped and continued at any moment."""
