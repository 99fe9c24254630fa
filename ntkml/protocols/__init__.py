"""What runs are asked for: the settings in ``experiments/*.toml`` as frozen dataclasses. No torch."""
