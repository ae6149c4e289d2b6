"""Runs the command line: ``python -m tierstore``."""

from tierstore.cli import main

if __name__ == "__main__":
    main()
