"""Tables of every kind of run; each field's metadata has its unit and definition.

A *trace* is what `easd generate --trace` decoded, token by token. An *evaluation* is a grid of
cells: one system on one task with one seed each; its tokens are those of each task's first items.
A *bench* has one row for each timed run of a system. Columns are the lines of schema.csv.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from importlib.resources import files
from typing import Literal

import pyarrow as pa

FORMAT = 3
Kind = Literal["trace", "evaluation", "bench"]
TOP = 5  # most probable tokens kept per position for inspectors

OUTCOMES = ("accepted", "rejected", "penalised", "discarded", "replacement", "bonus")
EMITTED = ("accepted", "replacement", "bonus")  # rows whose token is in the text
EXAMINED = ("accepted", "rejected", "penalised")  # up to the first refusal of a block
PARTS = ("prefill", "draft", "target", "verify", "commit")  # of the engine's wall time

_NAME = pa.dictionary(pa.int32(), pa.string())


def column(name: str, kind: pa.DataType, unit: str, definition: str) -> pa.Field:
    """A field with its unit and definition as metadata."""
    return pa.field(name, kind, metadata={"unit": unit, "definition": definition})


def _type(name: str) -> pa.DataType:
    """The type that schema.csv calls `name`: `name` for repeated names, or one of Arrow's."""
    if name.startswith("list of "):
        return pa.list_(_type(name.removeprefix("list of ")))
    return _NAME if name == "name" else pa.type_for_alias(name)


def _columns() -> dict[str, list[pa.Field]]:
    """The columns of schema.csv by table."""
    text = (files("easd.runs") / "schema.csv").read_text(encoding="utf-8")
    found = defaultdict(list)
    for row in csv.DictReader(text.splitlines()):
        found[row["table"]].append(
            column(row["name"], _type(row["type"]), row["unit"], row["definition"])
        )
    return found


_COLUMNS = _columns()
TOKENS, STEPS, SAMPLES, VOCABULARY = (
    pa.schema(_COLUMNS[name]) for name in ("tokens", "steps", "samples", "vocabulary")
)

# In the order of writing: a chunk of an evaluation counts as finished once its samples are there.
TABLES: dict[Kind, dict[str, pa.Schema]] = {
    "trace": {"vocabulary": VOCABULARY, "tokens": TOKENS, "steps": STEPS, "samples": SAMPLES},
    "evaluation": {
        "items": pa.schema(_COLUMNS["items"]),
        "vocabulary": VOCABULARY,
        "tokens": pa.schema([*_COLUMNS["cell"], *TOKENS]),
        "chunks": pa.schema([*_COLUMNS["cell"], *_COLUMNS["chunks"]]),
        "samples": pa.schema([*_COLUMNS["cell"], *_COLUMNS["graded samples"]]),
    },
    "bench": {"timings": pa.schema(_COLUMNS["timings"])},
}
