"""`easd tasks`."""

from rich.console import Console
from rich.table import Table

from easd.tasks import TASKS


def command() -> None:
    """List the tasks, where they come from, and how their answers are graded."""
    table = Table("task", "what it is", "source", "licence", "graded by")
    for name, info in TASKS.items():
        where = info.hub or ("generated" if info.kind == "lab" else "your file")
        table.add_row(name, info.summary, where, info.licence, info.kind)
    Console().print(table)
