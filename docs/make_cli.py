"""Write docs/cli.md from the command line's own help: `python docs/make_cli.py`."""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from easd.cli import app

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """The help of every command as Markdown."""
    command = typer.main.get_command(app)
    with typer.Context(command, info_name="easd") as context:
        text = get_docs_for_click(obj=command, ctx=context, name="easd", title="Command line")
    notice = "<!-- Written by docs/make_cli.py from the command line's own help. -->\n\n"
    return notice + text.strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
