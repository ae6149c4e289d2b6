"""``python -m tierstore`` is the command line."""

from tierstore.cli import main

if __name__ == "__main__":
    main()
