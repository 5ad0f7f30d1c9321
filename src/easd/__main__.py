"""Runs the command line as `python -m easd`."""

from easd.cli import main

if __name__ == "__main__":
    main()
