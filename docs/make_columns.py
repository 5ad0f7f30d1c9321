"""Write docs/columns.md from the schemas of the tables: `python docs/make_columns.py`."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from easd.report.metrics import COLUMNS
from easd.runs import SCHEMAS
from easd.runs import samples_schema as study

PAGE = Path(__file__).with_name("columns.md")

HEAD = """<!-- Written by docs/make_columns.py from the schemas of the tables. -->

# Columns of the tables

Every Parquet file carries these units and definitions in its schema's metadata, too.
"""


def page() -> str:
    """The tables of a trace, of an evaluation, and of a report."""
    lines = [
        HEAD,
        "## A trace\n\nA folder that `--trace` wrote; `easd.runs.read_trace` reads it.\n",
    ]
    for name, schema in SCHEMAS.items():
        lines += table(name, schema)
    lines.append(
        "## An evaluation\n\nA folder that `easd eval` wrote; `easd.runs.store.read_run`.\n"
    )
    for name in ("samples", "units", "tokens", "items"):
        lines += table(f"{name} of an evaluation", getattr(study, name.upper()))
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
