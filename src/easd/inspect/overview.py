"""Prints the contents of a run folder in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.errors import visible
from easd.inspect.terminal import summary_panel
from easd.runs import Run, summary, traces
from easd.runs.fit_overlap import overlaps
from easd.runs.reader import CALLED

_COUNTS = ("proposed", "examined", "accepted", "penalised")


def overview(run: Run, console: Console) -> None:
    """Prints what a run holds, and which command shows more of it."""
    console.print(_text(_head(run)))
    if run.kind == "trace":
        console.print(summary_panel(summary(run), run.run["config"], title="all texts"))
        lines = [
            f"finished texts: {run.samples.num_rows}; `easd inspect {run.folder}` shows the first",
            "`easd report` compares the systems of an evaluation (`easd eval --out`)",
        ]
    elif run.kind == "evaluation":
        console.print(_grades(run))
        lines = [*_evaluation_hints(run)]
    else:
        console.print(_speeds(run))
        lines = [f"`easd bench --out {run.folder}` with the same settings prints the ratios"]
    for line in lines:
        console.print(_text(line), soft_wrap=True)


def _head(run: Run) -> str:
    models = run.run["models"]
    name = models.get("pair") or ", ".join(map(str, models.get("servers", ()))) or "unknown models"
    status = run.run["status"]
    error = f": {run.run['error']}" if run.run.get("error") else ""
    return f"{CALLED[run.kind]} of {name}, begun {run.run['started']}, {status}{error}"


def _evaluation_hints(run: Run) -> Iterator[str]:
    for line in overlaps(run.run):
        yield f"warning: {line}"
    recorded = traces(run)
    if recorded:
        systems = dict.fromkeys(cell.run["cell"]["system"] for cell in recorded)
        yield (
            f"tokens of {', '.join(systems)} are recorded: see a text with --sample 0, or all "
            "systems side by side with --html FILE"
        )
    if run.samples.num_rows:
        yield f"`easd report {run.folder}` compares the systems"


def _grades(run: Run) -> Table:
    table = _table("task", "system", "texts", "right", "tokens", "accepted", "penalised")
    keys = ["task", "system"]
    sums = ["new_tokens", *_COUNTS]
    samples = run.samples.set_column(
        run.samples.schema.get_field_index("correct"),
        "correct",
        pc.cast(pc.fill_null(run.samples["correct"], False), pa.int64()),
    )
    order = [system["name"] for system in run.run["systems"]]
    rows = _summed(samples, keys, ["correct", *sums])
    for row in sorted(rows, key=lambda row: order.index(row["system"])):
        table.add_row(
            _text(row["task"]),
            _text(row["system"]),
            f"{row['count']:,}",
            _percent(row["correct"], row["count"]),
            "" if row["new_tokens"] is None else f"{row['new_tokens']:,}",
            _percent(row["accepted"], row["examined"]),
            _percent(row["penalised"], row["examined"], digits=2),
        )
    return table


def _speeds(run: Run) -> Table:
    table = _table("at once", "context", "system", "rounds", "tok/s", "accepted", "penalised")
    keys = ["batch", "context", "system"]
    for row in _summed(run.timings, keys, ["tokens", "seconds", *_COUNTS]):
        table.add_row(
            str(row["batch"]),
            "as it is" if row["context"] is None else str(row["context"]),
            _text(row["system"]),
            str(row["count"]),
            f"{row['tokens'] / row['seconds']:.1f}",
            _percent(row["accepted"], row["examined"]),
            _percent(row["penalised"], row["examined"], digits=2),
        )
    return table


def _summed(table: pa.Table, keys: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Sums by group, in the order of appearance; `count` is the number of rows."""
    plain = {k: table[k].cast(pa.string()) for k in keys if pa.types.is_dictionary(table[k].type)}
    for name, values in plain.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    asked: list[Any] = [(name, "sum") for name in columns]
    grouped = table.group_by(list(keys), use_threads=False).aggregate([*asked, ([], "count_all")])
    renamed = {f"{name}_sum": name for name in columns} | {"count_all": "count"}
    return grouped.rename_columns([renamed.get(n, n) for n in grouped.column_names]).to_pylist()


def _text(text: str) -> Text:
    return Text(visible(text))


def _percent(part: float | None, whole: float | None, digits: int = 1) -> str:
    return f"{100 * (part or 0) / whole:.{digits}f} %" if whole else ""


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        plain = name in ("task", "system")
        table.add_column(name, justify="left" if plain else "right")
    return table
