"""``python -m hesse``: the command line, as launchers such as ``torchrun`` start it."""

from hesse.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
