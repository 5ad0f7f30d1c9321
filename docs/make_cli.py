"""Write docs/cli.md from the command line's help: `python docs/make_cli.py`."""

from pathlib import Path

from easd.cli.root import COMMANDS, command_line

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """Returns the help of every command as Markdown."""
    text = command_line(COMMANDS).generate_docs(heading_level=1)
    notice = "<!-- Written by docs/make_cli.py from the command line's own help. -->\n\n"
    return notice + text.strip().replace("# easd\n", "# Command line\n", 1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
