"""Run ntkml from a checkout without installing it: ``python cli.py bound-grid --hparam rotation``."""

from ntkml.commands import main

if __name__ == "__main__":
    main()
