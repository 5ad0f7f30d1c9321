"""The command line: one file a command."""

from easd.cli.root import app as app
from easd.cli.root import main as main
