"""`easd pairs`."""

from rich.console import Console
from rich.table import Table

from easd.pairs.lab import ALIASES
from easd.pairs.loading import PAIRS


def command() -> None:
    """List the embedded pairs, and what is missing to use one."""
    short = {name: alias for alias, name in ALIASES.items()}
    table = Table("pair", "what it is", "parameters", "licence", "state")
    for name, info in PAIRS.items():
        missing = info.missing()
        ready = "ready" if info.cached() else "installed; unpacked on first use"
        table.add_row(
            f"{name}, {short[name]}" if name in short else name,
            info.summary,
            info.parameters,
            info.licence,
            f"run: {missing}" if missing else ready,
        )
    Console().print(table)
