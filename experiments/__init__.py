"""Protocol files: one TOML per figure and table, read by :mod:`ntkml.protocols.bound_grid`."""
