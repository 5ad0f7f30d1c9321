"""Parts of a report as one HTML page, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from easd.report.cells import Cell, heading_unit
from easd.report.metrics.columns import Column
from easd.report.page import Figure, Flip, Part, Section, Table
from easd.runs.texts import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
_IDS = re.compile(r'(id="|href="#|url\(#)([^")]+)')


def html(parts: Sequence[Part], title: str) -> str:
    """One page that needs no other file and no script."""
    environment = Environment(
        loader=PackageLoader("easd.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    environment.filters |= {"drawing": drawing, "unit": _unit}
    template = environment.get_template("report.html.j2")
    return template.render(parts=parts, title=title, glossary=_glossary(parts))


def markdown(parts: Sequence[Part], title: str) -> str:
    """The same in Markdown; figures are links into the folder `figures`."""
    lines = [f"# {_escaped(title)}", ""]
    for part in parts:
        lines += [f"## {_escaped(f'{part.title} ({part.name})')}", "", _escaped(part.summary), ""]
        for section in part.sections:
            lines += _section_lines(part, section)
    lines += ["## Columns", ""]
    lines += [f"- **{_escaped(c.heading)}**: {_escaped(c.definition)}" for c in _glossary(parts)]
    return "\n".join(lines) + "\n"


def figure_file(part: Part, figure: Figure) -> str:
    """The name of a figure's file."""
    return f"{part.name}-{figure.name}.svg"


def drawing(figure: Figure, part: Part) -> Markup:
    """The figure's SVG with ids of its own and a text for those who cannot see it."""
    prefix = f"{part.name}-{figure.name}-"
    svg = _IDS.sub(lambda match: f"{match[1]}{prefix}{match[2]}", figure.svg)
    label = Markup.escape(visible(figure.caption))
    # The drawing is ours: matplotlib escapes the names that stand in it.
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _shown(value: Any) -> Any:
    """What the page prints of a value: text with its unseen characters spelt out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _unit(column: Column) -> str:
    return heading_unit(column.kind)


def _glossary(parts: Sequence[Part]) -> list[Column]:
    columns = {
        column.heading + column.definition: column
        for part in parts
        for section in part.sections
        for table in section.tables
        for column in table.columns
        if column.definition
    }
    return sorted(columns.values(), key=lambda column: column.heading.lower())


def _section_lines(part: Part, section: Section) -> list[str]:
    lines = [f"### {_escaped(section.title)}", ""]
    for sentence in section.sentences:
        lines += [_escaped(sentence), ""]
    for warning in section.warnings:
        lines += [f"> {_escaped(warning)}", ""]
    for figure in section.figures:
        caption = _escaped(figure.caption)
        lines += [f"![{caption}](figures/{figure_file(part, figure)})", ""]
    for table in section.tables:
        lines += _table_lines(table)
    for flip in section.flips:
        lines += _flip_lines(flip)
    return lines


def _table_lines(table: Table) -> list[str]:
    if not table.rows:
        return []
    headings = [_heading(column) for column in table.columns]
    lines = [f"**{_escaped(table.title)}**", ""] if table.title else []
    numeric = [cell.is_number for cell in table.rows[0]]
    lines.append("| " + " | ".join(headings) + " |")
    lines.append("|" + "|".join("---:" if number else "---" for number in numeric) + "|")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return [*lines, ""]


def _flip_lines(flip: Flip) -> list[str]:
    lines = [f"#### {_escaped(flip.title)}", "", *_quoted("prompt", flip.prompt)]
    lines += [f"Right: {_one_line(flip.answers)}", ""]
    for side in flip.sides:
        lines += [f"{_one_line(side['system'])} answers {_one_line(side['answer'])}:", ""]
        marked = f"{flip.shared}⟦{side['token']}⟧{side['rest']}"
        lines += _quoted("", marked)
    return lines


def _quoted(name: str, text: str) -> list[str]:
    """Text as a block of code, whose fence is longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{name}", visible(text), fence, ""]


def _heading(column: Column) -> str:
    unit = _unit(column)
    return _escaped(f"{column.heading}, {unit}" if unit else column.heading)


def _cell(cell: Cell) -> str:
    return _one_line(f"{cell.text} {cell.interval}".strip())


def _one_line(text: str) -> str:
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", visible(text))
