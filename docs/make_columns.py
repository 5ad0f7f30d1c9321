"""Write docs/columns.md from the schemas of the tables: `python docs/make_columns.py`."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from easd.report.metrics import COLUMNS
from easd.runs import TABLES
from easd.runs.schema import Kind

PAGE = Path(__file__).with_name("columns.md")

HEAD = """<!-- Written by docs/make_columns.py from the schemas of the tables. -->

# Columns of the tables

`easd.runs.open_run` reads any run folder. Every Parquet file carries these units and definitions in
its schema's metadata, too.
"""


KINDS: dict[Kind, tuple[str, str]] = {
    "trace": ("A trace", "`easd generate --trace`"),
    "evaluation": ("An evaluation", "`easd eval`, `ablate`, `sweep` or `calibrate`"),
    "bench": ("A benchmark", "`easd bench`"),
}


def page() -> str:
    """The tables of every kind of run, and the columns of a report."""
    lines = [HEAD]
    for kind, (title, about) in KINDS.items():
        lines.append(f"## {title}\n\nThe tables of a folder that {about} wrote.\n")
        for name, schema in TABLES[kind].items():
            lines += table(f"{name} of {title[0].lower()}{title[1:]}", schema)
    lines.append("## A report\n\n| column | heading | definition |\n|---|---|---|")
    lines += [f"| `{n}` | {c.heading} | {cell(c.definition)} |" for n, c in COLUMNS.items()]
    return "\n".join(lines).strip() + "\n"


def table(title: str, schema: pa.Schema) -> Iterator[str]:
    """A section about one table."""
    yield f"### {title}\n\n| column | unit | definition |\n|---|---|---|"
    for field in schema:
        about = {key.decode(): value.decode() for key, value in field.metadata.items()}
        yield f"| `{field.name}` | {about['unit']} | {cell(about['definition'])} |"
    yield ""


def cell(text: str) -> str:
    """Text that a Markdown table can hold."""
    return text.replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
