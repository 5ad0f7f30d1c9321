"""`python -m easd` is `easd`."""

from easd.cli import main

if __name__ == "__main__":
    main()
