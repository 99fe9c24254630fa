"""What runs leave behind and how it is read back: rows (CSV) and manifests (JSON). No torch."""
