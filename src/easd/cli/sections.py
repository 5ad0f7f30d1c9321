"""Prints a section of a report in the terminal, and keeps it as Markdown."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from easd.errors import TraceError, visible
from easd.report.page import Flip, Part, Section, Table, heading_unit
from easd.report.write import markdown

_BEFORE, _AFTER = 200, 120  # Most characters of a text before and after its first difference.


def show(section: Section, console: Console) -> None:
    """Prints tables, sentences, notes, and texts side by side."""
    console.print(Text(visible(section.title), "bold"), soft_wrap=True)
    for table in section.tables:
        console.print(_grid(table))
    for sentence in section.sentences:
        console.print(Text(visible(sentence)), soft_wrap=True)
    for note in section.warnings:
        console.print(Text(visible(f"note: {note}"), "dim"), soft_wrap=True)
    for flip in section.flips:
        console.print(_flip(flip), soft_wrap=True)


def keep(section: Section, folder: Path) -> Path:
    """Writes the section into the folder; returns the file.

    Raises:
        TraceError: It cannot be written.
    """
    path = folder / "reproduced.md"
    part = Part(name=section.name, title=section.title, summary="", sections=(section,))
    try:
        path.write_text(markdown([part], section.title), encoding="utf-8")
    except OSError as error:
        raise TraceError(f"cannot write {str(path)!r} ({error.strerror})") from None
    return path


def _grid(table: Table) -> Grid:
    """A table with units and intervals on lines of their own, so that it fits a narrow window."""
    title = Text(visible(table.title), "italic") if table.title else None
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    numeric = [cell.is_number for cell in table.rows[0]]
    for column, number in zip(table.columns, numeric, strict=True):
        words = [*column.heading.split(), heading_unit(column.kind)]
        grid.add_column(
            "\n".join(filter(None, words)),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
        )
    for row in table.rows:
        grid.add_row(
            *(
                Text("\n".join(map(visible, filter(None, (each.text, each.interval)))))
                for each in row
            )
        )
    return grid


def _flip(flip: Flip) -> Text:
    text = Text().append(f"\n{visible(flip.title)}\n", "bold")
    text.append(f"{visible(flip.prompt.strip())}\nright: {visible(flip.answers)}\n", "dim")
    for side in flip.sides:
        text.append(visible(f"{side['system']} answers {side['answer']}: "), "bold")
        text.append(visible(flip.shared[-_BEFORE:]))
        text.append(f"⟦{visible(side['token'])}⟧", "bold")
        text.append(visible(side["rest"][:_AFTER])).append("\n")
    return text
