"""Protocol files and the published tables: one TOML per figure and table, read by :mod:`ntkml.protocols.tables`."""
