"""The command line: one file a command, `root` finds them."""

from easd.cli.root import main as main
