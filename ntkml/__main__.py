"""``python -m ntkml``: the same as the command ``ntkml``."""

from ntkml.commands import main

if __name__ == "__main__":
    main()
