"""The command line: `root` dispatches to one file per command."""

from easd.cli.root import main as main
